"""A sequence run in pieces, with the states carried from one to the next, gives the bits of a single call."""

from typing import Any

import pytest
import torch
from cases import CELLS, DTYPES, Case, class_of, flatten, hx_of
from comparing import assert_accurate
from torch import Tensor

import fused_rnn

TIME = 23
# More rows than any instruction set reads weights in place for.
BATCHES = (13, 30)
# No instruction set reads weights in place for as many steps, whatever the batch.
SHORTEST = 5
CUTS = {"one by one": [1] * TIME, "the last one alone": [TIME - 1, 1], "halves": [11, 12], "a few": [2, 5, 1, 4, 11]}
SIZES = [(1, 1), (5, 7), (64, 64), (33, 130), (300, 257), (700, 70)]


def in_pieces(module: torch.nn.Module, input: Tensor, states: tuple[Tensor, ...], lengths: list[int]) -> list[Tensor]:
    """Return output and final states of a layer that runs pieces of these lengths one after another."""
    outputs = []
    hx = hx_of(states)
    for piece in input.split(lengths):
        output, hx = module(piece, hx)
        outputs.append(output)
    return [torch.cat(outputs), *flatten(hx)]


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_pieces_of_a_layer(kind: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    for batch in BATCHES:
        case = Case(kind, TIME, batch, *sizes, num_layers=2)
        module, (input, states) = case.module(fused_rnn, dtype), case.tensors(dtype)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for gradients in (True, False):
                with torch.set_grad_enabled(gradients):
                    whole = flatten(module(input, hx_of(states)))
                    for name, lengths in CUTS.items():
                        for part, expected in zip(in_pieces(module, input, states, lengths), whole, strict=True):
                            assert torch.equal(part, expected), f"batch {batch}, {threads} threads, {name}"


@pytest.mark.parametrize("form", [{"bias": False}, {"proj_size": 9}], ids=str)
def test_pieces_of_a_layer_with_options(form: dict[str, Any]) -> None:
    for batch in (1, 6, *BATCHES):
        case = Case("LSTM", TIME, batch, 140, 70, **form)
        module, (input, states) = case.module(fused_rnn, torch.float32), case.tensors(torch.float32)
        whole = flatten(module(input, hx_of(states)))
        for lengths in CUTS.values() if batch in BATCHES else [CUTS["halves"]]:
            assert all(map(torch.equal, in_pieces(module, input, states, lengths), whole))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_cells_step_by_step(kind: str, sizes: tuple[int, int]) -> None:
    """A cell with the weights of a layer gives the layer's output, bit for bit."""
    for batch in BATCHES:
        case = Case(kind, TIME, batch, *sizes)
        layer, (input, states) = case.module(fused_rnn, torch.float32), case.tensors(torch.float32)
        cell = class_of(fused_rnn, kind, cell=True)(*sizes)
        cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
        output, hx = layer(input, hx_of(states))
        state = tuple(tensor[0] for tensor in states)
        for step, expected in zip(input, output, strict=True):
            state = tuple(flatten(cell(step, hx_of(state))))
            assert torch.equal(state[0], expected)
        assert all(map(torch.equal, state, [tensor[0] for tensor in flatten(hx)]))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("sizes", SIZES[1::2], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_a_few_sequences_in_pieces(kind: str, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    """Of smaller batches, pieces of some steps give the bits of the whole, too."""
    for batch in (1, 4, 12):
        case = Case(kind, TIME, batch, *sizes, num_layers=2)
        module, (input, states) = case.module(fused_rnn, dtype), case.tensors(dtype)
        whole = flatten(module(input, hx_of(states)))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for lengths in ([SHORTEST] * 3 + [TIME - 3 * SHORTEST], CUTS["halves"]):
                for part, expected in zip(in_pieces(module, input, states, lengths), whole, strict=True):
                    assert torch.equal(part, expected), f"batch {batch}, {threads} threads, {lengths}"


@pytest.mark.parametrize("kind", CELLS)
def test_a_few_sequences_step_by_step(kind: str) -> None:
    """Their single steps read weights in place, and differ in the order of sums, not in accuracy."""
    for batch in (1, 2, 4, 12):
        case = Case(kind, TIME, batch, 90, 70)
        module, (input, states) = case.module(fused_rnn, torch.float32), case.tensors(torch.float32)
        exact, peer = (
            flatten(case.module(torch.nn, dtype)(case.tensors(dtype)[0], hx_of(case.tensors(dtype)[1])))
            for dtype in (torch.float64, torch.float32)
        )
        stepwise = in_pieces(module, input, states, CUTS["one by one"])
        for part, expected, other in zip(stepwise, exact, peer, strict=True):
            assert_accurate(part, expected, other)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_half_precision_in_pieces(kind: str, dtype: torch.dtype) -> None:
    """States that are carried from piece to piece are rounded, which those within a call are not."""
    case = Case(kind, TIME, 3, 40, 70)
    module, (input, states) = case.module(fused_rnn, dtype), case.tensors(dtype)
    exact, peer = (
        in_pieces(case.module(torch.nn, each), *case.tensors(each), CUTS["one by one"])
        for each in (torch.float64, dtype)
    )
    for part, expected, other in zip(in_pieces(module, input, states, CUTS["one by one"]), exact, peer, strict=True):
        assert_accurate(part, expected, other)
