"""An LSTM cell against torch.nn's."""

import pytest
import torch
from cases import CELL_SHAPES, DTYPES, cell_case, flatten, result
from comparing import assert_all_accurate

import fused_rnn


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CELL_SHAPES, ids=str)
def test_equals_torch(shape: tuple[int | None, int, int], dtype: torch.dtype, device: str) -> None:
    ours = result(*cell_case(fused_rnn, "LSTM", *shape, dtype, device=device))
    exact = result(*cell_case(torch.nn, "LSTM", *shape, torch.float64))
    assert_all_accurate(ours, exact, result(*cell_case(torch.nn, "LSTM", *shape, dtype, device=device)))


def test_without_bias(device: str) -> None:
    ours = result(*cell_case(fused_rnn, "LSTM", 3, 4, 6, torch.float64, False, device))
    assert_all_accurate(ours, result(*cell_case(torch.nn, "LSTM", 3, 4, 6, torch.float64, False)))


@pytest.mark.parametrize("batch", [None, 0, 3])
def test_state_is_zero_by_default(batch: int | None, device: str) -> None:
    cell, input, states = cell_case(fused_rnn, "LSTM", batch, 4, 6, torch.float64, device=device)
    zeros = tuple(torch.zeros_like(state) for state in states)
    assert all(map(torch.equal, flatten(cell(input)), flatten(cell(input, zeros))))


def test_functional_needs_both_biases_or_none() -> None:
    cell, input, _ = cell_case(fused_rnn, "LSTM", 3, 4, 6, torch.float64)
    with pytest.raises(ValueError, match="bias_ih and bias_hh"):
        fused_rnn.functional.lstm_cell(input, None, cell.weight_ih, cell.weight_hh, cell.bias_ih)
