"""The memory of recurrent layers on a GPU: they save no more than cuDNN for backward, and nothing in inference."""

from typing import Any

import pytest
import torch
from cases import CELLS, DTYPES, KINDS, Case, flatten, structure_of
from torch import Tensor

import fused_rnn
from fused_rnn import ops

pytestmark = pytest.mark.needs_cuda

CUDNN_MODES = {"RNN_RELU": 0, "RNN": 1, "LSTM": 2, "GRU": 3}
WEIGHTS_OF_A_DIRECTION = 4
MEGABYTE = 2**20


def saved_by_cudnn(case: Case, module: torch.nn.RNNBase, input: Tensor, states: tuple[Tensor, ...]) -> int:
    """Return the bytes that cuDNN saves for backward."""
    weights: Any = list(module.parameters())
    h0, c0 = states[0], states[1] if len(states) > 1 else None
    *_, reserve, _ = torch._cudnn_rnn(
        input, weights, WEIGHTS_OF_A_DIRECTION, None, h0, c0, CUDNN_MODES[case.kind], case.hidden_size, 0, 1, False,
        0.0, True, case.bidirectional, [], None,
    )  # fmt: skip
    return reserve.nbytes


def saved_by_us(case: Case, module: torch.nn.RNNBase, input: Tensor, states: tuple[Tensor, ...]) -> int:
    """Return the bytes that we save for backward: the gates and, of an LSTM, the cell states."""
    weights = [weight.detach() for weight in module.parameters()]
    _, _, gates, history = ops.recurrent(CELLS[case.kind], input, states, weights, None, None, True)
    return sum(tensor.nbytes for tensor in (gates, *history))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training_keeps_no_more_than_cudnn(kind: str, bidirectional: bool, dtype: torch.dtype) -> None:
    case = Case(kind, time=50, batch=16, input_size=256, hidden_size=256, bidirectional=bidirectional)
    arguments = case.module(torch.nn, dtype, "cuda"), *case.tensors(dtype, "cuda")
    ours, theirs = saved_by_us(case, *arguments), saved_by_cudnn(case, *arguments)
    assert ours <= theirs, f"{ours / theirs:.2f} times as much"


def requested() -> dict[str, int]:
    """Return how many bytes of tensors there are, and were at most.

    Not what PyTorch has allocated for them: a tensor may get a block of memory that is up to a megabyte larger.
    """
    statistics = torch.cuda.memory_stats()
    return {name: statistics[f"requested_bytes.all.{name}"] for name in ("current", "peak")}


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_keeps_nothing_of_a_step(kind: str, dtype: torch.dtype, path: str) -> None:
    case = Case(kind, time=200, batch=16, input_size=256, hidden_size=256)
    module, (input, _) = case.module(fused_rnn, dtype, "cuda"), case.tensors(dtype, "cuda")
    with torch.no_grad():
        module(input)  # allocates what is allocated only once, such as the workspace of cuBLAS
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = requested()["current"]
        outputs = flatten(module(input))
    returned = sum(tensor.nbytes for tensor in outputs)
    assert requested()["current"] - before == returned
    # Besides the outputs, a call allocates the input's part of the gates' sums, computed before the first step.
    sums = structure_of(kind).sums * case.hidden_size * case.time * case.batch * dtype.itemsize
    assert requested()["peak"] - before <= returned + sums + MEGABYTE
