"""The peers of LSTM and GRU: fused, torch.nn, cells in a Python loop (reference, torch.nn, compiled), ONNX Runtime.

In half precision they are fused and torch.nn, layers and cells: ONNX Runtime's LSTM and GRU want float32 on a CPU, and
a loop over the reference cell would say nothing that one over torch.nn's cells does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from benchmarks.cases import RecurrentCase
from benchmarks.cell_loop import WEIGHTS_PER_CELL, loop_over_function, loop_over_modules
from benchmarks.onnx_peer import onnx_is_installed, onnx_peer
from benchmarks.problem import FUSED, Outputs, Peer, Problem, torch_peer
from fused_rnn import reference

Input = Tensor | PackedSequence

REFERENCE_CELLS: dict[str, Callable[..., Any]] = {"LSTM": reference.lstm_cell, "GRU": reference.gru_cell}
REFERENCE_LAYERS: dict[str, Callable[..., Outputs]] = {"LSTM": reference.lstm, "GRU": reference.gru}


def recurrent_problem(case: RecurrentCase, *, compiled: bool = False) -> Problem:
    """Make data and peers of `case`, the same ones in every run.

    Args:
        case: What to compute.
        compiled: Whether torch.compile of the reference cell takes part; compiling takes longer than measuring.

    Returns:
        The problem; every peer has the weights of torch.nn's layer.
    """
    torch.manual_seed(0)
    sizes = (case.input_size, case.hidden_size, case.num_layers)
    options: dict[str, Any] = {"bidirectional": case.bidirectional, "dtype": getattr(torch, case.dtype)}
    theirs = getattr(nn, case.kind)(*sizes, **options)
    weights = list(theirs.parameters())
    leaf, input = make_input(case)
    grad_output = torch.randn(*leaf.shape[:-1], case.directions * case.hidden_size, dtype=leaf.dtype)

    def peer(name: str, network: Callable[[Any], Any], parameters: Sequence[Tensor]) -> Peer:
        return torch_peer(name, lambda: flatten_result(network(input)), [leaf, *parameters], grad_output)

    peers = []
    if case.form == "cell":
        peers.append(peer(FUSED, *loop_over_modules(getattr(fused_rnn, f"{case.kind}Cell"), case, weights)))
    else:
        ours = getattr(fused_rnn, case.kind)(*sizes, **options)
        ours.load_state_dict(theirs.state_dict())
        peers += [peer(FUSED, ours, list(ours.parameters())), peer("torch.nn", theirs, weights)]
    if case.form != "packed":
        peers.append(peer("torch.nn cells", *loop_over_modules(getattr(nn, f"{case.kind}Cell"), case, weights)))
    if case.form != "packed" and case.dtype == "float32":
        step = REFERENCE_CELLS[case.kind]
        peers.append(peer("reference cells", loop_over_function(step, case, weights), weights))
        if compiled:
            torch._dynamo.reset()  # its limit of recompilations is meant for one program, not for a grid
            step = torch.compile(step, dynamic=False)
            peers.append(peer("torch.compile", loop_over_function(step, case, weights), weights))
    if case.form == "sequence" and case.dtype == "float32" and onnx_is_installed():
        peers.append(onnx_peer(case, weights, leaf))
    return Problem(
        peers,
        _oracle(case, [leaf, *weights], input, grad_output),
        yardstick=peers[1].name,
        forward_names=("output", "h_n", "c_n")[: 3 if case.kind == "LSTM" else 2],
        gradient_names=("input", *(name for name, _ in theirs.named_parameters())),
    )


def make_input(case: RecurrentCase, device: str = "cpu") -> tuple[Tensor, Input]:
    """The leaf, `[time, batch, input_size]` or `[rows, input_size]`, and what a layer is given."""
    input = torch.randn(case.time, case.batch, case.input_size, dtype=getattr(torch, case.dtype), device=device)
    if case.form != "packed":
        input.requires_grad_()
        return input, input
    packed = pack_padded_sequence(input, torch.tensor(case.lengths))
    leaf = packed.data.requires_grad_()
    return leaf, PackedSequence(leaf, packed.batch_sizes)


def flatten_result(result: tuple[Any, ...]) -> Outputs:
    """(output, h_n) or (output, (h_n, c_n)) or (output, h_n, c_n), packed or not, as a flat tuple of tensors."""
    output, *states = result
    if isinstance(output, PackedSequence):
        output = output.data
    if isinstance(states[0], tuple):
        states = list(states[0])
    return (output, *states)


def _oracle(case: RecurrentCase, leaves: Sequence[Tensor], input: Input, grad_output: Tensor) -> Peer:
    """The reference layers, one after another, in float64, of the same (rounded) weights and input."""
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    batch_sizes = input.batch_sizes if isinstance(input, PackedSequence) else None
    zeros = torch.zeros(case.directions, case.batch, case.hidden_size, dtype=torch.float64)
    initial = (zeros, zeros) if case.kind == "LSTM" else (zeros,)
    layer_weights = case.directions * WEIGHTS_PER_CELL

    def compute() -> Outputs:
        output, *weights = doubles
        finals = []
        for first in range(0, len(weights), layer_weights):
            own = weights[first : first + layer_weights]
            output, *final = REFERENCE_LAYERS[case.kind](output, *initial, own, batch_sizes)
            finals.append(final)
        return (output, *(torch.cat(states) for states in zip(*finals, strict=True)))

    return torch_peer("reference in float64", compute, doubles, grad_output.double())
