"""The operators ``recurrent_freeze`` and ``recurrent_frozen``: results, in int8 above all, and refusals."""

from functools import partial
from typing import Any

import pytest
import torch
from cases import CELLS, DTYPES, Case, layer_inputs
from comparing import assert_accurate, assert_all_accurate, assert_identical, root_mean_square
from torch import Tensor

from fused_rnn import ops, reference

# The reference with quantised products. It quantises in float32, as the kernel does, and sums in float64.
quantised = partial(reference.recurrent, linear=reference.quantized_linear)
SHAPES = [(1, 3, 4, 6), (1, 1, 64, 257), (1, 33, 20, 100), (1, 2, 1, 1), (1, 13, 129, 31), (1, 50, 3, 16)]


def double(values: Any) -> list[Tensor]:
    return [value.double() for value in values]


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_one_step_in_int8_equals_the_reference(kind: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        input, states, weights = layer_inputs(Case(kind, *shape), dtype)
        weights = [weight * 1.1 for weight in weights]  # which does not fit into 8 bits
        packed = ops.recurrent_freeze(CELLS[kind], weights, 1, 1, torch.int8)
        output, finals, history = ops.recurrent_frozen(input, states, packed, return_states=True)
        _, exact = quantised(CELLS[kind], input.double(), double(states), double(weights))
        peer = [state.to(dtype) for state in exact]
        for ours, theirs, rounded in zip(finals, exact, peer, strict=True):
            assert_accurate(ours, theirs, rounded)
        assert torch.equal(output[0], finals[0][0])
        assert [values.shape for values in history] == [state.shape for state in states[1:]]


@pytest.mark.instruction_sets
@pytest.mark.parametrize("kind", CELLS)
def test_each_step_of_a_sequence_in_int8_equals_the_reference(kind: str) -> None:
    """From the states that the kernel left at the step before, since a rounding may fall on either side."""
    for shape in ((7, 1, 40, 33), (5, 20, 31, 65)):
        input, states, weights = layer_inputs(Case(kind, *shape, bidirectional=True))
        input, states, weights = (input.float(), [s.float() for s in states], [1.1 * w.float() for w in weights])
        packed = ops.recurrent_freeze(CELLS[kind], weights, 1, 2, torch.int8)
        output, finals, history = ops.recurrent_frozen(input, states, packed, return_states=True)
        size = output.size(2) // 2
        half = len(weights) // 2
        for direction in range(2):
            h = output[..., direction * size :][..., :size]
            others = [values[direction].view_as(h) for values in history]
            steps = range(len(input)) if direction == 0 else range(len(input) - 1, -1, -1)
            before = [state[direction] for state in states]
            for t in steps:
                given = [state.double().unsqueeze(0) for state in before]
                own = double(weights[direction * half : (direction + 1) * half])
                _, exact = quantised(CELLS[kind], input[t : t + 1].double(), given, own)
                before = [values[t] for values in (h, *others)]
                for ours, theirs in zip(before, exact, strict=True):
                    assert_accurate(ours, theirs[0], theirs[0].float())
            for final, last in zip(finals, before, strict=True):
                assert torch.equal(final[direction], last)


@pytest.mark.instruction_sets
@pytest.mark.parametrize(("dtype", "as_dtype"), [*((dtype, None) for dtype in DTYPES), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("kind", CELLS)
def test_unrounded_weights_equal_the_reference(kind: str, dtype: torch.dtype, as_dtype: torch.dtype | None) -> None:
    """The weights are exact in bfloat16, so that rounding them changes nothing."""
    for case in (Case(kind, 1, 1, 64, 257), Case(kind, 7, 33, 21, 100), Case(kind, 9, 2, 31, 65, bidirectional=True)):
        results: list[dict[int, Tensor]] = []
        for each in (torch.float64, dtype):
            (expected, *_), last = reference.recurrent(CELLS[kind], *layer_inputs(case, each))
            results.append(dict(enumerate((expected, *last))))
        input, initial, weights = layer_inputs(case, dtype)
        packed = ops.recurrent_freeze(CELLS[kind], weights, 1, 2 if case.bidirectional else 1, as_dtype)
        output, finals, _ = ops.recurrent_frozen(input, initial, packed)
        assert_all_accurate(dict(enumerate((output, *finals))), *results)


@pytest.mark.parametrize("kind", CELLS)
def test_what_is_not_finite_stays_in_its_row(kind: str) -> None:
    input, states, weights = layer_inputs(Case(kind, 1, 5, 20, 33), torch.float32)
    packed = ops.recurrent_freeze(CELLS[kind], weights, 1, 1, torch.int8)
    expected = ops.recurrent_frozen(input, states, packed)[0]
    for value in (float("nan"), float("inf"), -float("inf")):
        changed = input.clone()
        changed[0, 2, 17] = value
        output = ops.recurrent_frozen(changed, states, packed)[0]
        _, exact = quantised(CELLS[kind], changed.double(), double(states), double(weights))
        assert output[0, 2].isnan().all()
        assert exact[0][0, 2].isnan().all()
        others = [0, 1, 3, 4]
        assert torch.equal(output[0, others], expected[0, others])


@pytest.mark.instruction_sets
def test_rows_of_zeros_and_of_the_smallest_numbers() -> None:
    weights = [torch.randn(24, 5), torch.randn(24, 8)]
    weights[0][3], weights[1][4], weights[1][5] = 0, 1e-37, 3e-36
    input, h = torch.randn(1, 6, 5), torch.randn(1, 6, 8)
    input[0, 0], input[0, 1], input[0, 2], h[0, 3], h[0, 4] = 0, 1e-37, 3e-36, 0, 3e36
    packed = ops.recurrent_freeze("gru", weights, 1, 1, torch.int8)
    _, (exact,) = quantised("gru", input.double(), [h.double()], double(weights))
    assert_accurate(ops.recurrent_frozen(input, [h], packed)[0], exact, exact.float())


@pytest.mark.parametrize("kind", CELLS)
def test_the_error_of_int8_does_not_grow_over_1000_steps(kind: str) -> None:
    input, states, weights = layer_inputs(Case(kind, 1000, 4, 32, 64), torch.float32)
    if kind == "RNN_RELU":
        weights[1] = weights[1] * 0.5  # otherwise the states grow
    exact, _ = reference.recurrent(CELLS[kind], input.double(), double(states), double(weights))
    packed = ops.recurrent_freeze(CELLS[kind], weights, 1, 1, torch.int8)
    output, _, _ = ops.recurrent_frozen(input, states, packed)
    first, last = (root_mean_square(output[part], exact[0][part]) for part in (slice(100), slice(900, None)))
    scale = exact[0].square().mean().sqrt().item()
    assert first < 0.02 * scale
    assert last < 2 * first


def test_int8_weights_are_those_of_the_reference() -> None:
    """A layer of weights that are multiples of their scales is that in float32, for inputs that are, too."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randint(-127, 128, (16, size), generator=generator).float() / 1024 for size in (9, 16)]
    for weight in weights:
        weight[:, 0] = 127 / 1024
    input = torch.randint(-127, 128, (1, 5, 9), generator=generator).float() / 64
    input[..., 0] = 127 / 64
    h = torch.zeros(1, 5, 16)
    packed = ops.recurrent_freeze("rnn_tanh", weights, 1, 1, torch.int8)
    (exact,), _ = reference.recurrent("rnn_tanh", input.double(), [h.double()], double(weights))
    assert_accurate(ops.recurrent_frozen(input, [h], packed)[0], exact, exact.float())


def test_refusals() -> None:
    input, states, weights = layer_inputs(Case("LSTM"), torch.float32)
    freeze = ops.recurrent_freeze
    packed = freeze("lstm", weights, 1, 1)
    bad: list[tuple[Any, ...]] = [("lstm", weights, 3, 1), ("lstm", weights, 1, 3), ("gru", weights, 1, 1)]
    bad += [("lstm", own, 1, 1) for own in ([], [weights[0][:, 0], *weights[1:]], [weights[0], weights[1].t()])]
    for arguments in bad:
        with pytest.raises(RuntimeError):
            freeze(*arguments)
    with pytest.raises(ValueError, match="cell must be one of"):
        freeze("mlp", weights, 1, 1)
    with pytest.raises(ValueError, match="weights of Float cannot be frozen as Half"):
        freeze("lstm", weights, 1, 1, torch.float16)
    with pytest.raises(ValueError, match="weights of Double cannot be frozen as Char"):
        freeze("lstm", double(weights), 1, 1, torch.int8)
    with pytest.raises(ValueError, match="more than 65536 inputs"):
        freeze("rnn_tanh", [torch.zeros(1, 65537), torch.zeros(1, 1)], 1, 1, torch.int8)
    for wrong in (packed[:64], packed.clone().fill_(1), packed.to(torch.int8), packed.float()):
        with pytest.raises(RuntimeError, match="packed must be what recurrent_freeze returned"):
            ops.recurrent_frozen(input, states, wrong)
    given: list[tuple[Tensor, Any]] = [
        (input.double(), double(states)), (input[..., :-1], states), (input, [s.repeat(2, 1, 1) for s in states]),
        (input, [s[..., :-1] for s in states]), (input, states[:1]), (input[:0], states),
    ]  # fmt: skip
    for values, own in given:
        with pytest.raises(RuntimeError, match="refused by fused_rnn::recurrent"):
            ops.recurrent_frozen(values, own, packed)


def test_states_that_are_not_given_are_zero() -> None:
    for kind in CELLS:
        case = Case(kind, 4, 3, 4, 6, bidirectional=True)
        input, states, weights = layer_inputs(case, torch.float32)
        packed = ops.recurrent_freeze(CELLS[kind], weights, 1, 2)
        zeros = [torch.zeros_like(state) for state in states]
        expected, given = (ops.recurrent_frozen(input, each, packed) for each in (zeros, ()))
        assert_identical({"output": given[0]}, {"output": expected[0]})
        assert_identical(dict(enumerate(given[1])), dict(enumerate(expected[1])))
    packed = ops.recurrent_freeze("gru", [torch.randn(24, 4), torch.randn(24, 8)], 1, 1)
    step = torch.randn(3, 4)
    expected = ops.recurrent_frozen(step, [torch.zeros(3, 8)], packed)
    assert torch.equal(ops.recurrent_frozen(step, (), packed)[0], expected[0])
