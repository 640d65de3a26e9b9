"""States that are replaced inside a sequence: layers with resets compute each segment by itself, exactly."""

from typing import Any

import pytest
import torch
from cases import CELLS, DTYPES, KINDS, Case, cell_case, class_of, comparable, flatten, hx_of, structure_of
from comparing import assert_all_accurate, assert_identical, differentiate
from segments import (
    RESET_STATES,
    check_nothing_passes_a_reset,
    ours,
    packed_results,
    random_resets,
    reset_states_of,
    run_segments,
    segments,
    theirs,
)
from torch import nn

import fused_rnn
from fused_rnn.modules import GRUResetBefore, MergedDirections, Reversed, WithDefaults

FORMS: list[dict[str, Any]] = [
    {},
    {"time": 1},
    {"bidirectional": True, "bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"time": 9, "batch": 17, "input_size": 7, "hidden_size": 33, "bidirectional": True},
    {"time": 40, "batch": 70, "input_size": 3, "hidden_size": 20},
    {"time": 30, "batch": 1, "hidden_size": 17, "bidirectional": True},
]
CASES = [Case(kind, **form) for kind in CELLS for form in FORMS]
CASES += [
    Case("LSTM", proj_size=3, bidirectional=True),
    Case("LSTM", time=9, proj_size=17, hidden_size=33, batch=17, num_layers=2),
]


@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_segment_is_computed_by_itself(case: Case, which: str, device: str) -> None:
    resets, reset_states = random_resets(case), reset_states_of(case, which)
    exact = theirs(case, resets, reset_states)
    assert_all_accurate(ours(case, resets, reset_states, torch.float64, device), exact)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pattern", ["none", "first step", "every step", "all rows at once", "one row", "last step"])
@pytest.mark.parametrize("kind", CELLS)
def test_patterns(kind: str, pattern: str, bidirectional: bool, device: str) -> None:
    case = Case(kind, bidirectional=bidirectional)
    resets = torch.zeros(case.time, case.batch, dtype=torch.bool)
    where: Any = {
        "none": (slice(0),), "first step": 0, "every step": slice(None), "all rows at once": 2,
        "one row": (slice(None), 1), "last step": -1,
    }[pattern]  # fmt: skip
    resets[where] = True
    for which in RESET_STATES:
        states = reset_states_of(case, which)
        assert_all_accurate(ours(case, resets, states, torch.float64, device), theirs(case, resets, states))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_accuracy(case: Case, dtype: torch.dtype, device: str) -> None:
    resets, reset_states = random_resets(case), reset_states_of(case, "of every step")
    exact, peer = (theirs(case, resets, reset_states, each) for each in (torch.float64, dtype))
    found = ours(case, resets, reset_states, dtype, device)
    assert_all_accurate(*(comparable(case.kind, dtype, each) for each in (found, exact, peer)))


@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("kind", CELLS)
def test_lengths(kind: str, which: str, device: str) -> None:
    """A reset in the padding has no effect, and none begins where a sequence ends."""
    case, lengths = Case(kind, time=7, batch=6, bidirectional=True), (7, 3, 0, 5, 1, 3)
    resets, reset_states = random_resets(case, 0.5), reset_states_of(case, which)
    resets[3, 1] = resets[6, 3] = True
    expected = theirs(case, resets, reset_states, lengths=lengths)
    assert_all_accurate(ours(case, resets, reset_states, torch.float64, device, lengths=lengths), expected)


@pytest.mark.parametrize("lengths", [(5, 4, 1), (2, 5, 4)])
@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("kind", CELLS)
def test_packed(kind: str, which: str, lengths: tuple[int, ...], device: str) -> None:
    case = Case(kind, num_layers=2, bidirectional=True, lengths=lengths)
    found, exact = (packed_results(case, which, package, torch.float64, where) for package, where in (
        (fused_rnn, device), (nn, "cpu"),
    ))  # fmt: skip
    assert_all_accurate(found, exact)


@pytest.mark.parametrize("kind", CELLS)
def test_forms_of_the_input(kind: str, device: str) -> None:
    """Unbatched input and input with the batch first have resets of the same form."""
    case = Case(kind, num_layers=2, bidirectional=True)
    input, states = case.tensors(torch.float64, device)
    resets = random_resets(case).to(device)
    for which in RESET_STATES[1:]:
        others = tuple(state.to(device) for state in reset_states_of(case, which))
        module = case.module(fused_rnn, torch.float64, device)
        output, *finals = flatten(module(input, hx_of(states), resets=resets, reset_states=hx_of(others)))
        alone = flatten(
            module(
                input[:, 1], hx_of([s[:, 1] for s in states]), resets=resets[:, 1],
                reset_states=hx_of([other[..., 1, :] for other in others]),
            )
        )  # fmt: skip
        assert_all_accurate(dict(enumerate(alone)), dict(enumerate([output[:, 1], *(f[:, 1] for f in finals)])))
        module.batch_first = True
        first = module(input.transpose(0, 1), hx_of(states), resets=resets.T, reset_states=hx_of(others))
        assert_identical(dict(enumerate(flatten(first))), dict(enumerate([output.transpose(0, 1), *finals])))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_a_segment_is_the_same_to_the_bit_by_itself(kind: str, dtype: torch.dtype, bidirectional: bool) -> None:
    """So are its gradients. Sizes are such that the weights are read in the same way for a segment as for the whole."""
    case = Case(kind, time=24, batch=40, input_size=24, hidden_size=40, bidirectional=bidirectional)
    module, (input, states) = case.module(fused_rnn, dtype), case.tensors(dtype)
    others = reset_states_of(case, "of every step", dtype)
    resets = torch.zeros(case.time, case.batch, dtype=torch.bool)
    resets[[0, 9, 14]] = True
    grads = torch.randn(case.time, case.batch, (2 if bidirectional else 1) * case.hidden_size).to(dtype)
    leaves, count = [tensor.requires_grad_() for tensor in (input, *states, *others)], len(states)
    output, *finals = flatten(module(input, hx_of(states), resets=resets, reset_states=hx_of(others)))
    of_input, *rest = torch.autograd.grad(output, leaves, grads)

    def before(begin: int, end: int, states: Any, others: Any) -> list[torch.Tensor]:
        """Return of each state what the directions of a segment begin with, or its gradients."""
        behind = states if end == case.time else [other[end] for other in others]
        return [torch.cat([o[begin, :1], b[1:]]).detach() for o, b in zip(others, behind, strict=True)]

    for begin, end in segments(resets[:, 0].tolist()):
        part = input[begin:end].detach()
        initial = before(begin, end, states, others)
        for leaf in (part, *initial):
            leaf.requires_grad_()
        own, *ends = flatten(module(part, hx_of(initial)))
        own_grads = torch.autograd.grad(own, [part, *initial], grads[begin:end])
        expected = [of_input[begin:end], *before(begin, end, rest[:count], rest[count:])]
        assert_identical(dict(enumerate(own_grads)), dict(enumerate(expected)))
        assert torch.equal(own, output[begin:end])
        for final, last in zip(finals, ends, strict=True):
            if end == case.time:
                assert torch.equal(final[0], last[0])
            if begin == 0:
                assert torch.equal(final[1:], last[1:])


@pytest.mark.parametrize("case", [Case(kind, 12, 9, 5, 21, bidirectional=True) for kind in CELLS], ids=str)
def test_nothing_passes_a_reset(case: Case, device: str) -> None:
    check_nothing_passes_a_reset(case, device)


@pytest.mark.parametrize("kind", KINDS)
def test_no_reset_changes_nothing(kind: str, device: str) -> None:
    case = Case(kind, num_layers=2, bidirectional=True)
    module, (input, states) = case.module(fused_rnn, torch.float32, device), case.tensors(torch.float32, device)
    without = dict(enumerate(flatten(module(input, hx_of(states)))))
    resets = torch.zeros(case.time, case.batch, dtype=torch.bool)
    assert_identical(dict(enumerate(flatten(module(input, hx_of(states), resets=resets)))), without)


@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_sequences(kind: str, which: str, device: str) -> None:
    case = Case(kind, batch=0, bidirectional=True)
    resets, reset_states = random_resets(case), reset_states_of(case, which)
    found = ours(case, resets, reset_states, torch.float32, device)
    expected = case.torch_result(torch.float32)
    assert_identical({name: found[name] for name in expected}, expected)
    assert all(found[f"grad reset{i}"].shape == state.shape for i, state in enumerate(reset_states))


def test_states_of_every_step() -> None:
    case = Case("LSTM", time=6)
    input, states = case.tensors(torch.float64)
    resets = random_resets(case)
    module = case.module(fused_rnn, torch.float64)
    _, (_, c_n), cells = module(input, states, resets=resets, return_states=True)
    assert torch.equal(cells[-1], c_n[0])
    after = [module(input[: t + 1], states, resets=resets[: t + 1])[1][1][0] for t in range(case.time)]
    assert_all_accurate({"c": cells}, {"c": torch.stack(after)})


def test_the_gru_with_the_reset_gate_before_the_product() -> None:
    module = GRUResetBefore(4, 6, num_layers=2, bidirectional=True).double()
    input, resets = torch.randn(5, 3, 4).double(), torch.zeros(5, 3, dtype=torch.bool)
    resets[2] = True
    output, h_n = module(input, resets=resets)
    # Each direction of the second layer sees both of the first, so only the parts together are independent.
    parts = [module(input[:2]), module(input[2:])]
    assert_all_accurate({"output": output}, {"output": torch.cat([part[0] for part in parts])})
    assert_all_accurate({"h_n": h_n[::2]}, {"h_n": parts[1][1][::2]})


@pytest.mark.parametrize("form", ["padded", "batch first", "lengths", "unbatched", "unbatched, lengths"])
@pytest.mark.parametrize("which", RESET_STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_reversed(kind: str, which: str, form: str, device: str) -> None:
    """A layer that runs backwards is the second direction of a bidirectional one."""
    case = Case(kind, time=7, batch=1 if "unbatched" in form else 5, bidirectional=True)
    lengths = ((7, 3, 0, 5, 6) if case.batch > 1 else (5,)) if "lengths" in form else None
    both, (input, states), resets = case.module(nn, torch.float64), case.tensors(torch.float64), random_resets(case)
    resets[0, 0] = True
    layer = class_of(fused_rnn, kind)(case.input_size, case.hidden_size, batch_first=form == "batch first").double()
    layer.load_state_dict({name.removesuffix("_reverse"): w for name, w in both.state_dict().items() if "rev" in name})
    module, others = Reversed(layer).to(device), reset_states_of(case, which)
    leaves: dict[Any, torch.Tensor] = {"input": input, **dict(enumerate((*states, *others)))}
    for leaf in leaves.values():
        leaf.requires_grad_()
    output, *finals = run_segments(both, case, input, states, resets, others, lengths)
    exact = [output[..., case.hidden_size :], *(final[1:] for final in finals)]

    def given(tensor: torch.Tensor, batch_dim: int) -> torch.Tensor:
        return (tensor.select(batch_dim, 0) if "unbatched" in form else tensor).to(device)

    sequences: list[Any] = [given(input, 1), given(resets, 1)]
    if form == "batch first":
        sequences = [sequence.transpose(0, 1) for sequence in sequences]
    hx, replacing = (hx_of([given(s[..., 1:, :, :], -2) for s in each]) if each else None for each in (states, others))
    options = {"lengths": lengths, "resets": sequences[1], "reset_states": replacing}
    output, *finals = flatten(module(sequences[0], hx, **options))
    found = [output.transpose(0, 1) if form == "batch first" else output, *finals]
    if "unbatched" in form:
        found = [tensor.unsqueeze(1) for tensor in found]
    found, parameters = [tensor.cpu() for tensor in found], ((module, ""), (both, "_reverse"))
    results = []
    for outputs, (each, end) in zip((found, exact), parameters, strict=True):
        weights = {n: w for n, w in each.named_parameters() if n.endswith(end)}
        named = {name.removeprefix("layer.").removesuffix(end): weight for name, weight in weights.items()}
        results.append(dict(enumerate([*outputs, *differentiate(outputs, {**leaves, **named}).values()])))
    assert_all_accurate(*results)


def test_layers_around_layers() -> None:
    case, lengths = Case("LSTM", bidirectional=True), torch.tensor([5, 0, 3])
    layer, (input, states) = case.module(fused_rnn, torch.float64), case.tensors(torch.float64)
    options: dict[str, Any] = {"resets": random_resets(case), "reset_states": reset_states_of(case, "of every step")}
    output, final = layer(input, states, **options)
    merged, merged_final = MergedDirections(layer, "sum")(input, states, **options)
    assert torch.equal(merged, output[..., :6] + output[..., 6:])
    assert all(map(torch.equal, merged_final, final))
    expected = flatten(layer(input, states, lengths=lengths, **options))
    assert all(map(torch.equal, flatten(WithDefaults(layer, states, lengths)(input, **options)), expected))


@pytest.mark.parametrize("batch", [3, None])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, batch: int | None, device: str) -> None:
    """A cell with reset computes what it would from other states."""
    cell, input, states = cell_case(fused_rnn, kind, batch, 4, 6, torch.float64, device=device)
    reset = torch.tensor([True, False, True] if batch else True)
    others = tuple(map(torch.randn_like, states))
    for given, used in ((None, tuple(map(torch.zeros_like, states))), (others, others)):
        mask = reset.to(device).unsqueeze(-1)
        expected = cell(input, hx_of([torch.where(mask, o, s) for o, s in zip(used, states, strict=True)]))
        options = {} if given is None else {"reset_states": hx_of(given)}
        actual = cell(input, hx_of(states), reset=reset, **options)
        assert_identical(dict(enumerate(flatten(actual))), dict(enumerate(flatten(expected))))
    assert torch.equal(flatten(cell(input, reset=reset))[0], flatten(cell(input))[0])


def test_the_states_of_a_cell_that_is_reset_have_no_gradient() -> None:
    cell, h = fused_rnn.GRUCell(4, 6), torch.full((2, 6), torch.nan)
    h[1] = 0.5
    h.requires_grad_()
    output = cell(torch.randn(2, 4), h, reset=torch.tensor([True, False]))
    assert output.isfinite().all()
    (gradient,) = torch.autograd.grad(output.sum(), h)
    assert not gradient[0].any()
    assert gradient[1].all()


def states_for(kind: str, *shape: int) -> Any:
    """Return states of ones, of this shape, as a layer of ``kind`` takes them."""
    return hx_of([torch.ones(shape)] * structure_of(kind).states)


GOOD = torch.zeros(5, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resets": GOOD.long()}, TypeError, "resets must be bool, got torch.int64"),
        ({"resets": [True]}, TypeError, "resets must be a tensor of bool, got list"),
        ({"resets": GOOD.T}, ValueError, r"resets must have the shape of input but .* \[5, 3\], got \[3, 5\]"),
        ({"reset_states": (1, 3, 6)}, ValueError, "reset_states are given without resets"),
        ({"resets": GOOD, "reset_states": (1, 2, 6)}, ValueError, r"reset_states.* must have shape \[1, 3, 6\]"),
        ({"resets": GOOD, "reset_states": (4, 1, 3, 6)}, ValueError, r"reset_states.* must have shape \[5, 1, 3, 6\]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_refusals(kind: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    layer = getattr(fused_rnn, kind)(4, 6)
    if "reset_states" in options:
        options = {**options, "reset_states": states_for(kind, *options["reset_states"])}
    with pytest.raises(error, match=message):
        layer(torch.randn(5, 3, 4), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_of_other_states(kind: str) -> None:
    layer, input = getattr(fused_rnn, kind)(4, 6), torch.randn(5, 3, 4)
    doubles = hx_of([torch.ones(1, 3, 6).double()] * structure_of(kind).states)
    with pytest.raises(TypeError, match=r"reset_states.* must be torch.float32 as input is, got torch.float64"):
        layer(input, resets=GOOD, reset_states=doubles)
    elsewhere = hx_of([torch.ones(1, 3, 6, device="meta")] * structure_of(kind).states)
    with pytest.raises(ValueError, match=r"reset_states.* must be on cpu as input is, got meta"):
        layer(input, resets=GOOD, reset_states=elsewhere)


def test_an_lstm_has_two_reset_states() -> None:
    with pytest.raises(ValueError, match="reset_states must have 2 tensors, got 3"):
        fused_rnn.LSTM(4, 6)(torch.randn(5, 3, 4), resets=GOOD, reset_states=torch.ones(3, 1, 3, 6).unbind())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reset": torch.zeros(3)}, TypeError, "reset must be bool, got torch.float32"),
        ({"reset": GOOD[0, :2]}, ValueError, r"reset must have the shape of input but for its size, \[3\], got \[2\]"),
        ({"reset_states": torch.ones(3, 6)}, ValueError, "reset_states are given without reset"),
        ({"reset": GOOD[0], "reset_states": torch.ones(1, 6)}, ValueError, r"reset_states must have shape \[3, 6\]"),
    ],
)
def test_refusals_of_cells(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fused_rnn.GRUCell(4, 6)(torch.randn(3, 4), torch.randn(3, 6), **options)
