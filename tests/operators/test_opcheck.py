"""torch.library.opcheck of the operators: schemas, fake kernels and tracing for torch.compile."""

from typing import Any

import pytest
import torch
from cases import CELLS, DTYPES, Case, batch_sizes, cell_case, layer_inputs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fused_rnn import ops

# Without the types of their arguments, which mypy cannot match with a row of arguments.
recurrent: Any = ops.recurrent
FORWARD = torch.ops.fused_rnn.recurrent.default
BACKWARD = torch.ops.fused_rnn.recurrent_backward.default
CASES = [
    *(Case(kind, **kwargs) for kind in CELLS for kwargs in (
        {}, {"bidirectional": True, "bias": False}, {"lengths": (5, 4, 1)}, {"batch": 0},
    )),
    Case("LSTM", proj_size=3, bidirectional=True),
]  # fmt: skip


def backward_arguments(kind: str, arguments: Any) -> tuple[Any, ...]:
    """Return the arguments of the backward operator after a forward pass, except the flags of wanted gradients."""
    output, finals, gates, history = recurrent(CELLS[kind], *arguments, True)
    grad_finals = [None, *map(torch.randn_like, finals[1:])]
    grad_history = [torch.randn_like(values) for values in history]
    return CELLS[kind], torch.randn_like(output), grad_finals, grad_history, *arguments, output, gates, history


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("save_for_backward", [True, False])
def test_forward_operators(case: Case, dtype: torch.dtype, save_for_backward: bool) -> None:
    arguments = (CELLS[case.kind], *layer_inputs(case, dtype), batch_sizes(case), None, save_for_backward)
    torch.library.opcheck(FORWARD, arguments)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("save_for_backward", [True, False])
def test_forward_operators_with_gradients(case: Case, save_for_backward: bool) -> None:
    input, states, weights = layer_inputs(case)
    for tensor in (input, *states, *weights):
        tensor.requires_grad_()
    torch.library.opcheck(
        FORWARD, (CELLS[case.kind], input, states, weights, batch_sizes(case), None, save_for_backward)
    )


@pytest.mark.parametrize("hidden_size", [64, 65])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_dtypes_of_what_a_gpu_saves(kind: str, dtype: torch.dtype, hidden_size: int) -> None:
    """As the fake kernel has them, without a GPU; tests/gpu/test_cuda.py compares them with those of the kernels."""
    input, states, weights = layer_inputs(Case(kind, hidden_size=hidden_size), dtype)
    with FakeTensorMode() as mode:
        on_gpu = [mode.from_tensor(tensor).to("cuda:0") for tensor in (input, *states, *weights)]
        fake_states, fake_weights = on_gpu[1 : 1 + len(states)], on_gpu[1 + len(states) :]
        _, _, gates, history = recurrent(CELLS[kind], on_gpu[0], fake_states, fake_weights, None, None, True)
    assert gates.dtype == dtype
    # c of few units is saved in float32, or in float64.
    wide = torch.promote_types(dtype, torch.float32)
    assert {values.dtype for values in history} <= {dtype if hidden_size > 64 else wide}
    assert len(history) == len(states) - 1


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_operators(case: Case, dtype: torch.dtype, wanted: tuple[bool, bool, bool]) -> None:
    arguments = (*layer_inputs(case, dtype), batch_sizes(case), None)
    torch.library.opcheck(BACKWARD, (*backward_arguments(case.kind, arguments), *wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_operators_of_one_step(kind: str, dtype: torch.dtype) -> None:
    module, input, states = cell_case(torch.nn, kind, 3, 4, 6, dtype)
    weights = [weight.detach() for weight in module.parameters()]
    arguments = (input, states, weights, None, None)
    torch.library.opcheck(FORWARD, (CELLS[kind], *arguments, True))
    sequence = (input[None], [state[None] for state in states], weights, None, None)
    for one, first in zip(FORWARD(CELLS[kind], *arguments, True), FORWARD(CELLS[kind], *sequence, True), strict=True):
        pairs = [(one, first)] if isinstance(one, Tensor) else zip(one, first, strict=True)
        assert all(torch.equal(a, b.view_as(a)) for a, b in pairs)
    *backward, output, gates, history = backward_arguments(kind, arguments)
    for given in (output, None):  # which one step does not read
        torch.library.opcheck(BACKWARD, (*backward, given, gates, history, True, True, True))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_operators_of_one_step_without_units(kind: str, dtype: torch.dtype) -> None:
    module, input, states = cell_case(torch.nn, kind, 3, 4, 0, dtype)
    arguments = (input, states, [weight.detach() for weight in module.parameters()], None, None)
    for saves in (True, False):
        torch.library.opcheck(FORWARD, (CELLS[kind], *arguments, saves))
    for wanted in ((True, True, True), (False, True, False)):
        torch.library.opcheck(BACKWARD, (*backward_arguments(kind, arguments), *wanted))


@pytest.mark.parametrize("kind", CELLS)
def test_one_step_has_no_lengths(kind: str) -> None:
    module, input, states = cell_case(torch.nn, kind, 3, 4, 6, torch.float32)
    for sizes, lengths in ((torch.tensor([3]), None), (None, torch.tensor([1, 1, 1]))):
        with pytest.raises(RuntimeError, match="one step, with h0 of 2 dimensions, has no batch_sizes or lengths"):
            FORWARD(CELLS[kind], input, states, list(module.parameters()), sizes, lengths, False)
