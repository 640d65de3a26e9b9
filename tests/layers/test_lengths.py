"""The argument ``lengths``, for padded batches in which every sequence has its own length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CELLS, DTYPES, KINDS, LAYERS, REFERENCES, Case, flatten, hx_of, layer_inputs
from comparing import assert_accurate, assert_all_accurate
from layer_results import LENGTHS, check_padding_is_never_read, lengths_of, result_with_lengths
from on_gpu import float32_precision, require_path
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import functional, ops

FUNCTIONS: dict[str, Callable[..., Any]] = {kind: getattr(functional, kind.lower()) for kind in KINDS}

CASES = [
    *(Case(kind, batch=len(lengths), bidirectional=bidirectional)
      for kind in KINDS for lengths in LENGTHS for bidirectional in (False, True)),
    Case("LSTM", batch=6, proj_size=3, bidirectional=True),
    *(Case(kind, batch=6, bias=False, hidden_size=33, input_size=17) for kind in KINDS),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_equals_reference(case: Case, device: str) -> None:
    exact = result_with_lengths(REFERENCES[case.kind], case, torch.float64)
    assert_all_accurate(result_with_lengths(LAYERS[case.kind], case, torch.float64, device), exact)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy(kind: str, dtype: torch.dtype, device: str) -> None:
    check_accuracy(Case(kind, batch=6, bidirectional=True, hidden_size=17), dtype, device)


def check_accuracy(case: Case, dtype: torch.dtype, device: str) -> None:
    exact = result_with_lengths(REFERENCES[case.kind], case, torch.float64)
    peer = result_with_lengths(REFERENCES[case.kind], case, dtype, device)
    assert_all_accurate(result_with_lengths(LAYERS[case.kind], case, dtype, device), exact, peer)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_on_every_path(kind: str, bidirectional: bool, dtype: torch.dtype, path: str) -> None:
    case = Case(kind, batch=6, bidirectional=bidirectional, hidden_size=72)
    with float32_precision("ieee"):
        require_path(path, case.paths(dtype))
        check_accuracy(case, dtype, "cuda")


@pytest.mark.parametrize("form", [{}, {"batch_first": True}, {"num_layers": 3, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_modules_equal_torch_with_packed_input(kind: str, form: dict[str, Any], device: str) -> None:
    case = Case(kind, batch=4, **form)
    lengths = [2, 5, 1, 4]
    input, states = case.tensors(torch.float64)
    hx = hx_of(states)
    packed = pack_padded_sequence(input, torch.tensor(lengths), case.batch_first, enforce_sorted=False)
    output, finals = case.module(torch.nn, torch.float64)(packed, hx)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(output, case.batch_first, total_length=5)
    module, (input, states) = case.module(fused_rnn, torch.float64, device), case.tensors(torch.float64, device)
    hx = hx_of(states)
    on_device = torch.tensor(lengths, device=device)
    for given in (lengths, torch.tensor(lengths), on_device, on_device.to(torch.int32)):
        actual, actual_finals = module(input, hx, lengths=given)
        assert_accurate(actual, expected, name="output")
        assert_all_accurate(dict(enumerate(flatten(actual_finals))), dict(enumerate(flatten(finals))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_final_states_without_gradients(kind: str, mode: Callable[[], Any], dtype: torch.dtype, device: str) -> None:
    """Without gradients no c but the last one of each sequence is kept; it is that at the sequence's own end."""
    case = Case(kind, batch=5, num_layers=2, bidirectional=True, lengths=(2, 5, 1, 4, 2))

    def finals(package: Any, dtype: torch.dtype, device: str, **lengths: Any) -> dict[str, Tensor]:
        input, states = case.tensors(dtype, device)
        with mode():
            given = input if lengths else case.in_form(input)
            _, new = case.module(package, dtype, device)(given, hx_of(states), **lengths)
        return dict(zip(("h_n", "c_n"), flatten(new), strict=False))

    peer = finals(torch.nn, dtype, "cpu")
    ours = finals(fused_rnn, dtype, device, lengths=list(case.lengths or ()))
    assert_all_accurate(ours, finals(torch.nn, torch.float64, "cpu"), peer)
    with mode():  # a sequence without steps keeps the states that it was given
        input, states = case.tensors(dtype, device)
        _, new = case.module(fused_rnn, dtype, device)(input, hx_of(states), lengths=[0] * 5)
    assert all(map(torch.equal, flatten(new), states))


@pytest.mark.parametrize("kind", KINDS)
def test_full_lengths_change_nothing(kind: str, device: str) -> None:
    case = Case(kind, num_layers=2, bidirectional=True)
    module, (input, _) = case.module(fused_rnn, torch.float32, device), case.tensors(torch.float32, device)
    assert all(map(torch.equal, flatten(module(input, lengths=[5, 5, 5])), flatten(module(input))))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_read(kind: str, graph: bool, device: str) -> None:
    check_padding_is_never_read(kind, graph, device)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, check: Callable[..., bool], device: str) -> None:
    input, states, weights = layer_inputs(Case(kind, 3, 3, 2, 2, bidirectional=True), device=device)
    split = 1 + len(states)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            LAYERS[kind](
                tensors[0], tensors[1:split], list(tensors[split:]), lengths=torch.tensor([1, 3, 0], device=device)
            )
        )

    leaves = [tensor.detach().requires_grad_() for tensor in (input, *states, *weights)]
    assert check(function, leaves, rtol=1e-6, atol=1e-8, fast_mode=check is torch.autograd.gradgradcheck)


@pytest.mark.parametrize("save_for_backward", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, save_for_backward: bool) -> None:
    case = Case(kind, batch=6, bidirectional=True)
    arguments = (*layer_inputs(case, torch.float32), None, lengths_of(case))
    torch.library.opcheck(torch.ops.fused_rnn.recurrent.default, (CELLS[kind], *arguments, save_for_backward))
    if save_for_backward:
        output, finals, gates, history = ops.recurrent(CELLS[kind], *arguments, True)
        grads = [list(map(torch.randn_like, tensors)) for tensors in ([output], finals, history)]
        given = (CELLS[kind], grads[0][0], *grads[1:], *arguments, output, gates, history, True, True, True)
        torch.library.opcheck(torch.ops.fused_rnn.recurrent_backward.default, given)


X = torch.randn(5, 3, 4)
PACKED = pack_padded_sequence(X, torch.tensor([5, 3, 1]))
ERRORS: list[tuple[Any, Any, type[Exception], str]] = [
    (X, [5, 3], ValueError, r"lengths must have shape \[batch\] = \[3\], got \[2\]"),
    (X, torch.tensor(3), ValueError, "lengths must have shape"),
    (X, [], ValueError, "lengths must have shape"),
    (X, torch.ones(3, 1, dtype=torch.int64), ValueError, "lengths must have shape"),
    (X[:, 0], [5, 3, 1], ValueError, r"lengths must have shape \[batch\] = \[1\]"),
    (X, [5, 3, 6], ValueError, "lengths must lie between 0 and the number of time steps, 5, got 6"),
    (X, torch.tensor([5, -1, 3]), ValueError, "lengths must lie between 0 and the number of time steps, 5, got -1"),
    (X.to("meta"), [5, 3, 6], ValueError, "lengths must lie between 0 and the number of time steps, 5, got 6"),
    (X, torch.tensor([5.0, 3.0, 1.0]), TypeError, "lengths must be integers, got torch.float32"),
    (X, [1.5, 3.0, 1.0], TypeError, "lengths must be integers"),
    (X, torch.tensor([True, True, False]), TypeError, "lengths must be integers, got torch.bool"),
    (PACKED, [5, 3, 1], ValueError, "lengths must be None if input is a PackedSequence"),
]  # fmt: skip


@pytest.mark.parametrize(("input", "lengths", "error", "words"), ERRORS, ids=[words for *_, words in ERRORS])
@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind: str, input: Any, lengths: Any, error: type[Exception], words: str, device: str) -> None:
    if not input.data.is_meta:
        input = input.to(device)
    module = getattr(fused_rnn, kind)(4, 8).to(input.data.device)
    with pytest.raises(error, match=words):
        module(input, lengths=lengths)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (torch.tensor([5, 3, 1], dtype=torch.int32), "lengths must be int64"),
        (torch.tensor([5, 3]), "lengths must be int64 of shape"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_operators_check_for_themselves(kind: str, lengths: Tensor, words: str) -> None:
    input, states, weights = layer_inputs(Case(kind))
    with pytest.raises(RuntimeError, match=words):
        ops.recurrent(CELLS[kind], input, states, weights, None, lengths, False)
    sizes = torch.tensor([3, 3, 3, 3, 3])
    with pytest.raises(RuntimeError, match="lengths are for padded input, batch_sizes for packed"):
        ops.recurrent(CELLS[kind], input, states, weights, sizes, torch.tensor([5, 3, 1]), False)


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind: str, device: str) -> None:
    module = Case(kind).module(fused_rnn, torch.float64, device)
    input = X[:, 0].to(device, torch.float64)
    output, _ = module(input, lengths=[3])
    assert_accurate(output[:3], module(input[:3])[0])
    assert not output[3:].any()
