"""Layers on a GPU beside other work: threads, streams, processes, other kernels; within a limit; in CUDA graphs."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import KINDS, Case, check_accuracy
from comparing import assert_identical
from on_gpu import captured, paths
from torch import Tensor

import fused_rnn
from fused_rnn import _C

pytestmark = pytest.mark.needs_cuda


@pytest.fixture
def grid() -> Iterator[None]:
    """Let all layers run in kernels whose blocks are all over the GPU and wait for one another."""
    _C.set_plan_override("grid")
    yield
    _C.set_plan_override("any")


def layer_of(kind: str, hidden_size: int, seed: int = 0) -> tuple[Any, Tensor]:
    """Return a layer in bfloat16, and an input of 64 steps of 16 sequences."""
    torch.manual_seed(seed)
    layer = getattr(fused_rnn, kind)(64, hidden_size, device="cuda", dtype=torch.bfloat16)
    return layer, torch.randn(64, 16, 64, device="cuda", dtype=torch.bfloat16)


def results_of(layer: Any, input: Tensor) -> dict[str, Tensor]:
    """Return the output and all gradients."""
    leaf = input.detach().requires_grad_()
    output = layer(leaf)[0]
    names = ["input", *(name for name, _ in layer.named_parameters())]
    gradients = torch.autograd.grad(output.float().square().sum(), [leaf, *layer.parameters()])
    return {"output": output.detach(), **dict(zip(names, gradients, strict=True))}


@pytest.mark.parametrize("kind", KINDS)
def test_threads_with_two_sizes(kind: str) -> None:
    """Two sizes take the same kernel with different amounts of shared memory, which both threads need granted."""
    layers = [layer_of(kind, size) for size in (1024, 768)]
    expected = [results_of(*layer) for layer in layers]

    def run(index: int) -> list[dict[str, Tensor]]:
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [results_of(*layers[index]) for _ in range(30)]
        torch.cuda.synchronize()
        return results

    torch.cuda.synchronize()
    with ThreadPoolExecutor(2) as threads:
        for found, wanted in zip(threads.map(run, range(2)), expected, strict=True):
            for one in found:
                assert_identical(one, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_two_grids_at_once(kind: str, grid: None) -> None:
    """Each takes most of the GPU, so the blocks of both do not fit: neither may wait for blocks that cannot start."""
    layers = [layer_of(kind, 1024, seed) for seed in range(2)]
    expected = [results_of(*layer) for layer in layers]
    streams = [torch.cuda.Stream() for _ in layers]
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        for stream, layer in zip(streams, layers, strict=True):
            with torch.cuda.stream(stream):
                found.append(results_of(*layer))
    torch.cuda.synchronize()
    for index, one in enumerate(found):
        assert_identical(one, expected[index % 2])


@pytest.mark.parametrize("kind", KINDS)
def test_beside_kernels_that_fill_the_gpu(kind: str, grid: None) -> None:
    """Long kernels occupy all multiprocessors, or one of them, when the blocks of a grid are to start."""
    layer, input = layer_of(kind, 1024)
    expected = results_of(layer, input)
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    others = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(5):
        with torch.cuda.stream(others[0]):
            for _ in range(3):
                matrix = (matrix @ matrix).clamp(-1, 1)
        with torch.cuda.stream(others[1]):
            torch.cuda._sleep(10_000_000)
        found.append(results_of(layer, input))
    torch.cuda.synchronize()
    for one in found:
        assert_identical(one, expected)


PROCESS = """
import torch, fused_rnn
from fused_rnn import _C
_C.set_plan_override("grid")
torch.manual_seed(0)
layer = fused_rnn.LSTM(64, 1024, device="cuda", dtype=torch.bfloat16)
input = torch.randn(256, 64, 64, device="cuda", dtype=torch.bfloat16)
first = layer(input)[0].clone()
print("different:", sum(not torch.equal(layer(input)[0], first) for _ in range(100)))
"""


def test_two_processes() -> None:
    """They take turns on the GPU, and one may be stopped between two steps of the other."""
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.communicate(timeout=120)[0].strip() == "different: 0"


@pytest.fixture
def limit() -> Iterator[int]:
    """Let each launch take 40 multiprocessors."""
    fused_rnn.set_multiprocessor_limit(40)
    yield 40
    fused_rnn.set_multiprocessor_limit(None)


@pytest.mark.parametrize("kind", KINDS)
def test_limit_of_multiprocessors(kind: str, path: str, limit: int) -> None:
    case = Case(kind, time=6, batch=33, input_size=16, hidden_size=256, bidirectional=True)
    check_accuracy(case, torch.bfloat16, "cuda")
    for backward in (False, True):
        plan: Any = _C.cuda_plan("rnn_tanh" if kind == "RNN" else kind.lower(), 2, 33, 256, 2, backward, False, 6)
        if plan["path"] != "stepwise":
            assert plan["blocks"] * plan["groups"] * 2 // plan["launches"] <= limit
    assert path != "grid" or "grid" in paths(kind, torch.bfloat16, 6, 33, 256, 2).values()


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_out_of_range(kind: str, path: str) -> None:
    """They count as the nearest length in range, and with set_debug they are an error."""
    torch.manual_seed(0)
    layer = getattr(fused_rnn, kind)(8, 128, bidirectional=True, device="cuda")
    input = torch.randn(20, 5, 8, device="cuda")
    given, in_range = torch.tensor([25, -1, 20, 2**62, -(2**62)]), torch.tensor([20, 0, 20, 20, 0])
    results = []
    for lengths in (given, in_range):
        leaf = input.clone().requires_grad_()
        output, state = layer(leaf, lengths=lengths.cuda())
        h_n = state[0] if kind == "LSTM" else state
        gradients = torch.autograd.grad(output.sum() + h_n.sum(), [leaf, *layer.parameters()])
        results.append(dict(enumerate([output, h_n, *gradients])))
    assert_identical(*results)
    fused_rnn.set_debug(True)
    try:
        with pytest.raises(ValueError, match="lengths must lie between 0 and the number of time steps, 20, got 25"):
            layer(input, lengths=given.cuda())
        layer(input, lengths=in_range.cuda())
    finally:
        fused_rnn.set_debug(False)


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_batches_in_a_graph(kind: str, path: str) -> None:
    """Lengths on the GPU may change between replays. Those of a PackedSequence lie on the CPU, so it is refused."""
    layer, input = layer_of(kind, 256)
    lengths = torch.arange(16, device="cuda")
    with torch.no_grad():
        graph, result = captured(lambda: layer(input, lengths=lengths)[0])
        lengths.add_(40)
        graph.replay()
        assert torch.equal(result, layer(input, lengths=lengths)[0])
        packed = torch.nn.utils.rnn.pack_padded_sequence(input, lengths.cpu(), enforce_sorted=False)
        expected = layer(packed)[0].data
        with pytest.raises(RuntimeError, match="PackedSequence cannot be captured in a CUDA graph"):
            captured(lambda: layer(packed))
        torch.cuda.synchronize()
        assert torch.equal(layer(packed)[0].data, expected)
