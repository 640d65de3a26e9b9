"""The operators as the dispatcher and the tracers of torch.compile see them."""

from typing import Any

import pytest
import torch
from cases import DTYPES, KINDS, Case, batch_sizes, layer_inputs

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
