"""One step of each cell, compared with torch.nn."""

import pytest
import torch
from cases import CELL_SHAPES, CELLS, DTYPES, cell_case, comparable, flatten, hx_of, result
from comparing import assert_all_accurate

import fused_rnn


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CELL_SHAPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_equals_torch(kind: str, shape: tuple[int | None, int, int], dtype: torch.dtype, device: str) -> None:
    ours = result(*cell_case(fused_rnn, kind, *shape, dtype, device=device))
    exact = result(*cell_case(torch.nn, kind, *shape, torch.float64))
    peer = result(*cell_case(torch.nn, kind, *shape, dtype, device=device))
    assert_all_accurate(*(comparable(kind, dtype, results) for results in (ours, exact, peer)))


@pytest.mark.parametrize("kind", CELLS)
def test_without_bias(kind: str, device: str) -> None:
    ours = result(*cell_case(fused_rnn, kind, 3, 4, 6, torch.float64, False, device))
    assert_all_accurate(ours, result(*cell_case(torch.nn, kind, 3, 4, 6, torch.float64, False)))


@pytest.mark.parametrize("batch", [None, 0, 3])
@pytest.mark.parametrize("kind", CELLS)
def test_state_is_zero_by_default(kind: str, batch: int | None, device: str) -> None:
    cell, input, states = cell_case(fused_rnn, kind, batch, 4, 6, torch.float64, device=device)
    zeros = hx_of([torch.zeros_like(state) for state in states])
    assert all(map(torch.equal, flatten(cell(input)), flatten(cell(input, zeros))))


@pytest.mark.parametrize("name", ["lstm_cell", "gru_cell", "rnn_cell"])
def test_functional_needs_both_biases_or_none(name: str) -> None:
    cell, input, _ = cell_case(fused_rnn, name.removesuffix("_cell").upper(), 3, 4, 6, torch.float64)
    with pytest.raises(ValueError, match="bias_ih and bias_hh"):
        getattr(fused_rnn.functional, name)(input, None, cell.weight_ih, cell.weight_hh, cell.bias_ih)
