"""The operators as the dispatcher and the tracers of torch.compile see them."""

from typing import Any

import pytest
import torch
from cases import DTYPES, KINDS, Case, batch_sizes, cell_case, layer_inputs

from fused_rnn import ops

CASES = [
    *(Case(kind, **kwargs) for kind in KINDS for kwargs in (
        {}, {"bidirectional": True, "bias": False}, {"lengths": (5, 4, 1)}, {"batch": 0},
    )),
    Case("LSTM", proj_size=3, bidirectional=True),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("save_states", [True, False])
def test_forward_operators(case: Case, dtype: torch.dtype, save_states: bool) -> None:
    input, states, weights = layer_inputs(case, dtype)
    operator = getattr(torch.ops.fused_rnn, case.kind.lower()).default
    torch.library.opcheck(operator, (input, *states, weights, batch_sizes(case), None, save_states))


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_operators(case: Case, dtype: torch.dtype, wanted: tuple[bool, bool, bool]) -> None:
    input, states, weights = layer_inputs(case, dtype)
    forward: Any = {"LSTM": ops.lstm, "GRU": ops.gru}[case.kind]
    results = forward(input, *states, weights, batch_sizes(case), None, True)
    output, saved = results[0], results[1 + len(states) :]
    operator = getattr(torch.ops.fused_rnn, f"{case.kind.lower()}_backward").default
    grads = [torch.randn_like(output), None, *(torch.randn_like(tensor) for tensor in (*states[1:], *saved[1:]))]
    torch.library.opcheck(operator, (*grads, input, *states, weights, batch_sizes(case), None, output, *saved, *wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_operators_of_one_step(kind: str, dtype: torch.dtype) -> None:
    module, input, states = cell_case(torch.nn, kind, 3, 4, 6, dtype)
    weights = [weight.detach() for weight in module.parameters()]
    forward = getattr(torch.ops.fused_rnn, kind.lower()).default
    torch.library.opcheck(forward, (input, *states, weights, None, None, True))
    results = forward(input, *states, weights, None, None, True)
    sequence = forward(input[None], *(state[None] for state in states), weights, None, None, True)
    assert all(torch.equal(a, b.view_as(a)) for a, b in zip(results, sequence, strict=True))
    output, saved = results[0], results[1 + len(states) :]
    grads = [torch.randn_like(output), None, *(torch.randn_like(tensor) for tensor in (*states[1:], *saved[1:]))]
    backward = getattr(torch.ops.fused_rnn, f"{kind.lower()}_backward").default
    torch.library.opcheck(backward, (*grads, input, *states, weights, None, None, output, *saved, True, True, True))


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_has_no_lengths(kind: str) -> None:
    module, input, states = cell_case(torch.nn, kind, 3, 4, 6, torch.float32)
    operator = getattr(torch.ops.fused_rnn, kind.lower()).default
    for sizes, lengths in ((torch.tensor([3]), None), (None, torch.tensor([1, 1, 1]))):
        with pytest.raises(RuntimeError, match="one step, with h0 of 2 dimensions, has no batch_sizes or lengths"):
            operator(input, *states, list(module.parameters()), sizes, lengths, False)
