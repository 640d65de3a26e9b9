"""The references, which define the operators, compared with torch.nn in float64, and their own properties."""

from functools import partial
from typing import Any

import pytest
import torch
from cases import Case, batch_sizes, cell_case, flatten, hx_of, layer_inputs
from comparing import assert_accurate, assert_all_accurate
from torch import Tensor

from fused_rnn import reference

STEPS: dict[str, Any] = {
    "LSTM": reference.lstm_cell, "GRU": reference.gru_cell, "RNN": reference.rnn_cell,
    "RNN_RELU": partial(reference.rnn_cell, nonlinearity="relu"),
}  # fmt: skip
LAYERS: dict[str, Any] = {
    "LSTM": reference.lstm, "GRU": reference.gru, "RNN": reference.rnn,
    "RNN_RELU": partial(reference.rnn, nonlinearity="relu"),
}  # fmt: skip
CASES = [
    *(Case(kind, **kwargs) for kind in LAYERS for kwargs in (
        {}, {"bias": False}, {"bidirectional": True}, {"bidirectional": True, "lengths": (5, 4, 1)},
        {"batch": 0}, {"time": 1},
    )),
    *(Case("LSTM", proj_size=3, **kwargs) for kwargs in ({}, {"bias": False}, {"lengths": (5, 4, 1)})),
]  # fmt: skip


def outputs(case: Case, **kwargs: Any) -> tuple[Tensor, ...]:
    input, states, weights = layer_inputs(case)
    return LAYERS[case.kind](input, *states, weights, **kwargs)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("bias", [True, False])
def test_cell_equals_torch(kind: str, bias: bool) -> None:
    module, input, states = cell_case(torch.nn, kind, 3, 4, 6, torch.float64, bias)
    ours = flatten(STEPS[kind](input, *states, *module.parameters()))
    theirs = flatten(module(input, hx_of(states)))
    assert_all_accurate(dict(enumerate(ours)), dict(enumerate(theirs)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer_equals_torch(case: Case) -> None:
    input, states = case.tensors(torch.float64)
    module = case.module(torch.nn, torch.float64)
    theirs = flatten(module(case.in_form(input), hx_of(states)))
    ours = outputs(case, batch_sizes=batch_sizes(case))
    assert_all_accurate(dict(enumerate(ours)), dict(enumerate(theirs)))


def test_gru_reset_before_the_product() -> None:
    module, input, (h,) = cell_case(torch.nn, "GRU", 3, 4, 6, torch.float64)
    w_ih, w_hh, b_ih, b_hh = weights = list(module.parameters())
    before = reference.gru_cell(input, h, w_ih, w_hh, b_ih, b_hh, reset_after=False)
    assert (before - module(input, h)).abs().max() > 1e-3
    # The two conventions agree if the candidate's recurrent weight is diagonal and has no bias.
    with torch.no_grad():
        module.weight_hh[12:] = torch.diag(torch.randn(6))
        module.bias_hh[12:] = 0
    assert_accurate(reference.gru_cell(input, h, w_ih, w_hh, b_ih, b_hh, reset_after=False), module(input, h))
    layer = reference.gru(input[None], h[None], weights, reset_after=False)
    assert_accurate(layer[1][0], module(input, h))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_are_sequences_by_themselves(kind: str, bidirectional: bool) -> None:
    case = Case(kind, batch=4, bidirectional=bidirectional)
    input, states, weights = layer_inputs(case)
    lengths = [2, 0, 5, 4]
    output, *finals = LAYERS[kind](input, *states, weights, lengths=torch.tensor(lengths))
    for b, length in enumerate(lengths):
        initial = [state[:, b : b + 1] for state in states]
        assert torch.equal(output[length:, b], torch.zeros_like(output[length:, b]))
        if length == 0:
            expected_finals = initial
        else:
            expected, *expected_finals = LAYERS[kind](input[:length, b : b + 1], *initial, weights)
            assert_accurate(output[:length, b], expected[:, 0])
        for final, expected_final in zip(finals, expected_finals, strict=True):
            assert_accurate(final[:, b : b + 1], expected_final)


@pytest.mark.parametrize("kind", LAYERS)
def test_padding_is_never_read(kind: str) -> None:
    input, states, weights = layer_inputs(Case(kind, bidirectional=True))
    lengths = [2, 5, 3]
    padded = input.clone()
    for b, length in enumerate(lengths):
        padded[length:, b] = float("nan")

    def gradients(input: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in (input, *states, *weights)]
        results = LAYERS[kind](*leaves[: 1 + len(states)], leaves[1 + len(states) :], lengths=lengths)
        return torch.autograd.grad(sum(result.sum() for result in results), leaves)

    for clean, with_nan in zip(gradients(input), gradients(padded), strict=True):
        assert torch.equal(clean, with_nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_any_dtype(kind: str, dtype: torch.dtype) -> None:
    input, states, weights = layer_inputs(Case(kind), dtype)
    for ours, exact in zip(LAYERS[kind](input, *states, weights), outputs(Case(kind)), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, atol=8 * torch.finfo(dtype).eps, rtol=0)
