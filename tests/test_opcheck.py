"""The operators as torch.compile, torch.export and the dispatcher see them."""

from typing import Any

import pytest
import torch
from cases import DTYPES, KINDS, Case, batch_sizes, flatten, layer_inputs

import fused_rnn
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


@pytest.mark.parametrize("name", [*KINDS, "LSTMCell", "GRUCell"])
def test_compile_without_graph_breaks(name: str) -> None:
    module = getattr(fused_rnn, name)(4, 8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (3, 5):
        input = torch.randn(size, 4)
        expected, actual = flatten(module(input)), flatten(compiled(input))
        assert all(map(torch.equal, actual, expected))
        weights = list(module.parameters())
        grads = [torch.autograd.grad(outputs[0].sum(), weights) for outputs in (expected, actual)]
        assert all(map(torch.equal, *grads))
        with torch.no_grad():
            assert all(map(torch.equal, flatten(compiled(input)), expected))


@pytest.mark.parametrize("kind", KINDS)
def test_export_with_dynamic_time_and_batch(kind: str) -> None:
    module = getattr(fused_rnn, kind)(4, 8, 2, bidirectional=True)
    shapes = ({0: torch.export.Dim("time"), 1: torch.export.Dim("batch")},)
    exported = torch.export.export(module, (torch.randn(5, 3, 4),), dynamic_shapes=shapes).module()
    input = torch.randn(9, 2, 4)
    assert all(map(torch.equal, flatten(exported(input)), flatten(module(input))))
