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


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 0), (None, 4, 0), (0, 4, 0), (3, 0, 0), (3, 0, 6)], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_sizes_of_zero(kind: str, shape: tuple[int | None, int, int], dtype: torch.dtype, device: str) -> None:
    """As in torch.nn, the hidden size of a cell may be 0, and so may its input size."""
    ours = result(*cell_case(fused_rnn, kind, *shape, dtype, device=device))
    exact = result(*cell_case(torch.nn, kind, *shape, torch.float64))
    peer = result(*cell_case(torch.nn, kind, *shape, dtype, device=device))
    assert_all_accurate(*(comparable(kind, dtype, results) for results in (ours, exact, peer)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", CELLS)
def test_transforms_of_a_hidden_size_of_zero(kind: str) -> None:
    cell, input, states = cell_case(fused_rnn, kind, 3, 4, 0, torch.float64)

    def total(input: torch.Tensor) -> torch.Tensor:
        return sum((state.sum() for state in flatten(cell(input, hx_of(states)))), input.sum())

    assert torch.equal(torch.func.grad(total)(input), torch.ones(3, 4, dtype=torch.float64))
    assert not torch.func.hessian(total)(input).any()
    vmapped = torch.func.vmap(lambda input: cell(input, hx_of(states)))(input.expand(5, 3, 4))
    assert {tuple(state.shape) for state in flatten(vmapped)} == {(5, 3, 0)}
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    assert {tuple(state.shape) for state in flatten(compiled(input, hx_of(states)))} == {(3, 0)}


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_a_layer_of_hidden_size_zero_is_refused(name: str) -> None:
    """torch.nn's layers refuse it in their constructor."""
    with pytest.raises(RuntimeError, match="states must not be empty"):
        getattr(fused_rnn.functional, name)(torch.randn(5, 3, 4), None, [torch.randn(0, 4), torch.randn(0, 0)])
