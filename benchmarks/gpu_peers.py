"""The peers on a GPU: fused, torch.nn with cuDNN and without; each called as it is, and as a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from benchmarks.cases import Mode
from benchmarks.gpu_cases import GpuCase
from benchmarks.problem import FUSED, Compute, Outputs, Peer, Problem, torch_peer
from benchmarks.recurrent_peers import flatten_result, make_input
from benchmarks.timing import Function, Measurement, time_together

CUDNN, TORCH = "cuDNN", "torch.nn"


def gpu_problem(case: GpuCase, mode: Mode, device: str = "cuda") -> Problem:
    """Make data and peers of `case`, the same ones in every run; float32 is from now on computed as the case says.

    Args:
        case: What to compute.
        mode: Layers that are not trained are in evaluation mode, in which cuDNN keeps nothing for backward.
        device: Where; on a CPU both of torch.nn's peers are the same.

    Returns:
        The problem; every peer has the weights of torch.nn's layer.
    """
    _set_float32(case.tf32)
    torch.manual_seed(0)
    sizes = (case.input_size, case.hidden_size, case.num_layers)
    options: dict[str, Any] = {"bidirectional": case.bidirectional, "dtype": getattr(torch, case.dtype)}
    theirs = getattr(nn, case.kind)(*sizes, **options, device=device).train(mode == "training")
    ours = getattr(fused_rnn, case.kind)(*sizes, **options, device=device).train(mode == "training")
    ours.load_state_dict(theirs.state_dict())
    leaf, input = make_input(case, device)
    shape = (*leaf.shape[:-1], case.directions * case.hidden_size)
    grad_output = torch.randn(shape, dtype=leaf.dtype, device=device)

    def peer(name: str, layer: nn.Module, with_cudnn: bool = True) -> Peer:
        compute = _with_cudnn(lambda: flatten_result(layer(input)), with_cudnn)
        return torch_peer(name, compute, [leaf, *layer.parameters()], grad_output)

    return Problem(
        [peer(FUSED, ours), peer(CUDNN, theirs), peer(TORCH, theirs, with_cudnn=False)],
        _oracle(theirs, leaf, input, grad_output),
        yardstick=CUDNN,
        forward_names=("output", "h_n", "c_n")[: 3 if case.kind == "LSTM" else 2],
        gradient_names=("input", *(name for name, _ in theirs.named_parameters())),
    )


def _set_float32(tf32: bool) -> None:
    settings: Any = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    for setting in settings:
        setting.fp32_precision = "tf32" if tf32 else "ieee"


def _with_cudnn(compute: Compute, enabled: bool) -> Compute:
    """`compute` with cuDNN allowed or not; backward takes the way of forward.

    `torch.backends.cudnn.flags` would raise, since the precision of float32 is set for recurrent networks alone.
    """

    def computed() -> Outputs:
        torch._C._set_cudnn_enabled(enabled)
        try:
            return compute()
        finally:
            torch._C._set_cudnn_enabled(True)

    return computed


def _oracle(layer: nn.Module, leaf: Tensor, input: Tensor | PackedSequence, grad_output: Tensor) -> Peer:
    """torch.nn in float64 without cuDNN, of the same rounded weights and input."""
    double = copy.deepcopy(layer).double()
    exact = leaf.detach().double().requires_grad_()
    given = PackedSequence(exact, input.batch_sizes) if isinstance(input, PackedSequence) else exact
    compute = _with_cudnn(lambda: flatten_result(double(given)), False)
    return torch_peer("torch.nn in float64", compute, [exact, *double.parameters()], grad_output.double())


def captured(function: Function) -> Function | None:
    """What `function` does as a CUDA graph, or None if it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def time_on_gpu(
    problem: Problem, mode: Mode, seconds: float, wait: Function, capture: Callable[[Function], Function | None]
) -> dict[str, dict[str, Measurement]]:
    """Time all peers, as graphs and as plain calls.

    Args:
        problem: What they compute.
        mode: Forward calls run without gradients.
        seconds: About how long to time either way.
        wait: Returns when the GPU is done.
        capture: Makes a graph of a call, or None.

    Returns:
        Times of one call by peer, for each way; graphs only of the peers that can be captured, and only if ours can.
    """
    with torch.set_grad_enabled(mode == "training"):
        calls: dict[str, Function] = {peer.name: peer.prepare(mode) for peer in problem.peers}
        graphs = {name: graph for name, call in calls.items() if (graph := capture(call)) is not None}
        ways = {"graphs": graphs if FUSED in graphs else {}, "calls": calls}
        samples = {way: time_together(functions, seconds, wait) for way, functions in ways.items() if functions}
    return {way: {name: Measurement.of(values) for name, values in times.items()} for way, times in samples.items()}
