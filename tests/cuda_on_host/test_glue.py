"""The operators that csrc/ops/ has for a GPU, run on the CPU within the package: the glue and the kernels below it."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from cases import (
    CELL_SHAPES,
    CELLS,
    DTYPES,
    LAYERS,
    REFERENCES,
    Case,
    batch_sizes,
    cell_case,
    comparable,
    flatten,
    hx_of,
    layer_inputs,
    result,
    shapes_of_layers,
    structure_of,
    tails,
)
from comparing import assert_all_accurate, assert_identical, differentiate
from layer_results import CASES_WITH_STATES, check_padding_is_never_read, result_with_lengths, result_with_states
from segments import (
    RESET_STATES,
    check_nothing_passes_a_reset,
    ours,
    packed_results,
    random_resets,
    reset_states_of,
    theirs,
)
from torch import Tensor

import fused_rnn
from cuda_on_host.conftest import PATHS
from cuda_on_host.tf32 import tf32_cell
from fused_rnn import ops
from fused_rnn.reference.sequence import run_directions

pytestmark = pytest.mark.usefixtures("glue")

KINDS = tuple(CELLS)
# Sizes that the persistent kernels take, or take padded; a single step has the stepwise path.
PERSISTENT = [
    Case(kind, **sizes)
    for kind in KINDS
    for sizes in (
        {"time": 4, "batch": 3, "input_size": 5, "hidden_size": 8},
        {"time": 3, "batch": 19, "hidden_size": 40, "bidirectional": True, "num_layers": 2},
        {"time": 5, "batch": 9, "hidden_size": 24, "bias": False},
        {"batch": 6, "hidden_size": 16, "lengths": (5, 4, 2, 2, 1, 1), "bidirectional": True},
        {"batch": 0, "hidden_size": 16},
        {"time": 3, "batch": 9, "hidden_size": 70, "bidirectional": True},
        {"time": 4, "batch": 3, "hidden_size": 67, "bias": False},
        {"batch": 6, "hidden_size": 66, "lengths": (5, 4, 2, 2, 1, 1), "bidirectional": True},
        {"batch": 0, "hidden_size": 100},
    )
]
LENGTHS_CASES = [
    *(Case(kind, batch=6, hidden_size=17, bidirectional=True) for kind in KINDS),
    *(Case(kind, batch=6, hidden_size=16, bidirectional=True) for kind in KINDS),
    *(Case(kind, batch=6, hidden_size=70, bidirectional=True) for kind in KINDS),
    Case("LSTM", batch=6, hidden_size=17, proj_size=3, bidirectional=True),
    Case("GRU", batch=6, bias=False, hidden_size=33),
    *(Case(kind, batch=batch) for kind in KINDS for batch in (0, 1, 2)),
]


def check_results(
    kind: str, dtype: torch.dtype, ours: dict[str, Tensor], exact: dict[str, Tensor], peer: dict[str, Tensor]
) -> None:
    """Assert that all results that can be compared are accurate."""
    assert_all_accurate(*(comparable(kind, dtype, results) for results in (ours, exact, peer)))


def check(case: Case, dtype: torch.dtype) -> None:
    results = case.result(fused_rnn, dtype), case.torch_result(torch.float64), case.torch_result(dtype)
    check_results(case.kind, dtype, *results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for kind in KINDS for case in shapes_of_layers(kind)], ids=str)
def test_layers(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for kind in KINDS for case in tails(kind)], ids=str)
def test_tails(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_layers(kind: str, dtype: torch.dtype) -> None:
    """Where few roundings average out, none beyond those of torch.nn may be made."""
    for time, batch, hidden_size in product((1, 3, 7), (1, 4), (1, 2, 5, 9)):
        check(Case(kind, time, batch, 2 * batch + 1, hidden_size, bidirectional=batch > 1), dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_persistent(case: Case, dtype: torch.dtype, path: str) -> None:
    check(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_warpgroup(case: Case, dtype: torch.dtype, operators: Any) -> None:
    operators.set_path(PATHS["warpgroup"])
    check(case, dtype)


@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_resets_with_warpgroups(kind: str, which: str, operators: Any) -> None:
    operators.set_path(PATHS["warpgroup"])
    for case in (Case(kind, 7, 6, hidden_size=70, bidirectional=True), Case(kind, 9, 70, hidden_size=72)):
        resets, states = random_resets(case), reset_states_of(case, which)
        found = ours(case, resets, states, torch.bfloat16, "cpu")
        check_results(
            kind, torch.bfloat16, found, *(theirs(case, resets, states, t) for t in (torch.float64, torch.bfloat16))
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LENGTHS_CASES, ids=str)
def test_lengths_in_any_order(case: Case, dtype: torch.dtype, path: str) -> None:
    exact, peer = (result_with_lengths(REFERENCES[case.kind], case, other) for other in (torch.float64, dtype))
    check_results(case.kind, dtype, result_with_lengths(LAYERS[case.kind], case, dtype), exact, peer)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_read(kind: str, graph: bool) -> None:
    check_padding_is_never_read(kind, graph, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*CASES_WITH_STATES, Case("LSTM", hidden_size=70, bidirectional=True)], ids=str)
def test_states(case: Case, dtype: torch.dtype, path: str) -> None:
    exact, peer = (result_with_states(REFERENCES[case.kind], case, other, None) for other in (torch.float64, dtype))
    assert_all_accurate(result_with_states(LAYERS[case.kind], case, dtype, None), exact, peer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CELL_SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cells(kind: str, shape: tuple[int | None, int, int], dtype: torch.dtype) -> None:
    ours, exact, peer = (
        result(*cell_case(package, kind, *shape, other))
        for package, other in ((fused_rnn, dtype), (torch.nn, torch.float64), (torch.nn, dtype))
    )
    assert_all_accurate(ours, exact, peer)


RESETS = [
    *(Case(kind, time=7, batch=6, hidden_size=size, bidirectional=True) for kind in KINDS for size in (8, 70)),
    *(Case(kind, time=9, batch=19, hidden_size=40) for kind in KINDS),
    *(Case(kind, time=1, hidden_size=8) for kind in KINDS),
    Case("LSTM", time=7, batch=6, hidden_size=8, num_layers=2, bidirectional=True),
    Case("LSTM", time=7, batch=6, hidden_size=8, proj_size=3, bidirectional=True),
]


@pytest.mark.parametrize("lengths", [None, (7, 0, 3, 5, 1, 2)], ids=str)
@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("case", RESETS, ids=str)
def test_resets(case: Case, which: str, lengths: tuple[int, ...] | None, path: str) -> None:
    if lengths is not None and (case.batch, case.time) != (6, 7):
        pytest.skip("the lengths are for another batch")
    options = {} if lengths is None else {"lengths": lengths}
    resets = random_resets(case)
    for dtype in DTYPES:
        states = reset_states_of(case, which)
        found = ours(case, resets, states, dtype, "cpu", **options)
        exact, peer = (theirs(case, resets, states, other, **options) for other in (torch.float64, dtype))
        check_results(case.kind, dtype, found, exact, peer)


@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_resets_of_packed_sequences(kind: str, which: str, path: str) -> None:
    dtype = torch.float64 if path == "stepwise" else torch.float32
    case = Case(kind, time=6, batch=5, hidden_size=8, bidirectional=True, lengths=(6, 4, 4, 2, 1))
    found, exact = (packed_results(case, which, package, other) for package, other in (
        (fused_rnn, dtype), (torch.nn, torch.float64),
    ))  # fmt: skip
    peer = packed_results(case, which, torch.nn, dtype)
    check_results(kind, dtype, found, exact, peer)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_passes_a_reset(kind: str, path: str) -> None:
    check_nothing_passes_a_reset(Case(kind, 12, 9, 5, 24, bidirectional=True), "cpu")


FORMS: list[dict[str, Any]] = [{}, {"bias": False}, {"time": 1}, {"lengths": (5, 4, 1)}, {"proj_size": 3}]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wanted(kind: str, form: dict[str, Any], path: str) -> None:
    """What is not saved for backward, or not wanted of it, is left out, and changes nothing of the rest."""
    case = Case(kind, hidden_size=8, **{"bidirectional": "time" not in form, **form})
    cell = CELLS[kind]
    if case.proj_size and not structure_of(kind).may_project:
        pytest.skip(f"{kind} has no projection")
    dtype = torch.float64 if path == "stepwise" else torch.float32
    input, states, weights = layer_inputs(case, dtype)
    if case.time == 1:  # [batch, size], as cells have it
        input, *states = (tensor.squeeze(0) for tensor in (input, *states))
    arguments = (input, states, weights, batch_sizes(case), None)
    output, finals, gates, history = ops.recurrent(cell, *arguments, True)
    unsaved_output, unsaved_finals, unsaved_gates, unsaved_history = ops.recurrent(cell, *arguments, False)
    assert all(map(torch.equal, [unsaved_output, *unsaved_finals], [output, *finals]))
    assert all(saved.shape == (0,) for saved in [unsaved_gates, *unsaved_history])

    def backward(input_grad: bool, state_grad: bool, weight_grad: bool) -> Any:
        grad_output, no_grads = torch.ones_like(output), [None] * len(states)
        return ops.recurrent_backward(
            cell, grad_output, no_grads, no_grads[1:], *arguments, output, gates, history,
            input_grad, state_grad, weight_grad,
        )  # fmt: skip

    complete = backward(True, True, True)
    for wanted in product([False, True], repeat=3):
        grad_input, grad_states, grad_weights = backward(*wanted)
        gradients, expected = [grad_input, *grad_states], [complete[0], *complete[1]]
        for gradient, other, needed in zip(gradients, expected, [wanted[0], *[wanted[1]] * len(states)], strict=True):
            assert torch.equal(gradient, other) if needed else gradient.shape == (0,)
        assert len(grad_weights) == len(weights) * wanted[2]
        assert all(map(torch.equal, grad_weights, complete[2]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_step_without_sequences(kind: str, dtype: torch.dtype, path: str) -> None:
    """Steps that no sequence has, behind the others, change nothing."""
    input, states, weights = layer_inputs(Case(kind, hidden_size=8, lengths=(5, 4, 1), bidirectional=True), dtype)
    sizes = torch.tensor([3, 2, 2, 2, 1])
    results = []
    for given in (sizes, torch.cat([sizes, torch.zeros(2, dtype=torch.int64)])):
        inputs = [tensor.detach().requires_grad_() for tensor in (input, *states, *weights)]
        outputs = LAYERS[kind](inputs[0], inputs[1 : 1 + len(states)], inputs[1 + len(states) :], given)
        gradients = differentiate(outputs, dict(enumerate(inputs)))
        results.append({f"out{i}": out for i, out in enumerate(outputs)} | gradients)
    assert_identical(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_touches_nothing(kind: str, path: str) -> None:
    """The gradients of a layer in float32, asked for within autocast: its products stay in float32."""
    case = Case(kind, hidden_size=8, bidirectional=True)
    input, states = case.tensors(torch.float32)
    results = []
    for autocast in (False, True):
        module = case.module(fused_rnn, torch.float32)
        outputs = flatten(module(input, states if len(states) > 1 else states[0]))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            gradients = torch.autograd.grad([out.sum() for out in outputs], list(module.parameters()))
        results.append(dict(enumerate(gradients)))
    assert_identical(*results)


def with_products(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what ``call`` returns, and how many products of matrices it computed."""
    with torch.autograd.profiler.profile() as profile:
        returned = call()
    return returned, sum(event.name in ("aten::mm", "aten::addmm") for event in profile.function_events)


TF32 = [
    *(
        Case(kind, hidden_size=8, bidirectional=True, **sizes)
        for kind in KINDS
        for sizes in ({}, {"bias": False, "lengths": (5, 4, 1)}, {"time": 1, "batch": 1}, {"batch": 0})
    ),
    *(Case(kind, time=3, hidden_size=67, bidirectional=True) for kind in KINDS),
    *(Case(kind, input_size=1, hidden_size=9, num_layers=2) for kind in KINDS),
    Case("LSTM", hidden_size=8, proj_size=3, bidirectional=True),
]


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("case", TF32, ids=str)
def test_all_products_obey_one_setting(
    case: Case, precision: str, path: str, operators: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting: Any = torch.backends.cudnn.rnn
    monkeypatch.setattr(setting, "fp32_precision", precision)
    before = operators.tf32_products()
    ours, products = with_products(lambda: case.result(fused_rnn, torch.float32))
    assert operators.tf32_products() - before == (products if precision == "tf32" else 0)
    assert products > 0 or case.batch == 0
    # float16 has as many bits of mantissa as tf32.
    peer = case.torch_result(torch.float16 if precision == "tf32" else torch.float32)
    assert_all_accurate(ours, case.torch_result(torch.float64), peer)


@pytest.mark.parametrize("hidden_size", [16, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_tf32_rounds_nothing_but_what_is_multiplied(
    kind: str, hidden_size: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting: Any = torch.backends.cudnn.rnn
    monkeypatch.setattr(setting, "fp32_precision", "tf32")

    cell = tf32_cell(CELLS[kind], everywhere=True)

    def rounded(input: Tensor, states: Any, weights: Any, lengths: Tensor) -> tuple[Tensor, ...]:
        every, final = run_directions(cell, input, tuple(states), weights, None, lengths)
        return every[0], *final

    case = Case(kind, batch=6, hidden_size=hidden_size, bidirectional=True)
    exact = result_with_lengths(REFERENCES[kind], case, torch.float64)
    peer = result_with_lengths(rounded, case, torch.float32)
    assert_all_accurate(result_with_lengths(LAYERS[kind], case, torch.float32), exact, peer)


@pytest.mark.parametrize(
    ("dtype", "time", "hidden_size", "persistent"),
    [
        (torch.bfloat16, 16, 70, True),
        (torch.bfloat16, 15, 70, False),
        (torch.bfloat16, 15, 72, True),
        (torch.bfloat16, 16, 63, False),
        (torch.float32, 16, 9, True),
        (torch.float32, 15, 9, False),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_padded(
    kind: str, dtype: torch.dtype, time: int, hidden_size: int, persistent: bool, operators: Any
) -> None:
    operators.set_path(PATHS["any"])
    case = Case(kind, time=time, hidden_size=hidden_size)
    module = case.module(fused_rnn, dtype)
    with torch.no_grad():
        _, products = with_products(lambda: module(case.tensors(dtype)[0]))
    assert (products == 1) == persistent
    check(case, dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_stays_zero_beside_infinite_input(kind: str, value: float, path: str) -> None:
    case = Case(kind, hidden_size=67, bidirectional=True)
    input = case.tensors(torch.float32)[0]
    input[1, 0, 3] = value
    with torch.no_grad():
        ours, exact, peer = (
            flatten(case.module(package, dtype)(input.to(dtype)))
            for package, dtype in ((fused_rnn, torch.float32), (torch.nn, torch.float64), (torch.nn, torch.float32))
        )
    assert_all_accurate(*(dict(enumerate(outputs)) for outputs in (ours, exact, peer)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_infinite_states_spread_as_in_torch(kind: str, dtype: torch.dtype, value: float, path: str) -> None:
    """Also in full precision, where float32 is split into parts whose products may be infinities of both signs."""
    case = Case(kind, time=2, hidden_size=80)
    input, states = case.tensors(torch.float32)
    states[0][0, 1, 7] = value
    with torch.no_grad():
        ours, exact, peer = (
            flatten(case.module(package, of)(input.to(of), hx_of([state.to(of) for state in states])))
            for package, of in ((fused_rnn, dtype), (torch.nn, torch.float64), (torch.nn, dtype))
        )
    assert_all_accurate(*(dict(enumerate(outputs)) for outputs in (ours, exact, peer)))


@pytest.mark.parametrize(
    ("dtype", "rows", "pieces"),
    [
        (torch.float32, 200, 1), (torch.float32, 520, 4), (torch.float32, 1640, 8), (torch.float32, 20_480, 20),
        (torch.bfloat16, 520, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_long_sums_of_float32_are_in_pieces(
    kind: str, dtype: torch.dtype, rows: int, pieces: int, operators: Any
) -> None:
    """Gradients of weights are sums over all rows, which lose more the longer they are; torch.nn sums by step."""
    operators.set_path(PATHS["grid"])
    case = Case(kind, time=40, batch=rows // 40, hidden_size=72 if rows < 2000 else 8)
    module = case.module(fused_rnn, dtype)
    output = flatten(module(case.tensors(dtype)[0]))[0]
    _, products = with_products(lambda: output.sum().backward())
    # The GRU's recurrent sums lie in two places, so that weight_hh takes two products.
    assert products == pieces * (3 if kind == "GRU" else 2)
    if rows < 2000:  # else the CPU's products add up in another order than torch.nn's by step
        check(case, dtype)
