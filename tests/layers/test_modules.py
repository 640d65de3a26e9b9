"""Recurrent layers and cells as modules, used as those of torch.nn are."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from cases import KINDS, Case, flatten
from comparing import assert_all_accurate
from torch import Tensor

import fused_rnn

CONSTRUCTORS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *((kind, (4, 8), kwargs) for kind in KINDS for kwargs in (
        {}, {"num_layers": 2, "dropout": 0.5}, {"bias": False, "batch_first": True}, {"bidirectional": True},
        {"dtype": torch.bfloat16}, {"device": "meta"},
    )),
    ("LSTM", (4, 8, 2, True, False, 0.0, True, 3), {}),
    ("GRU", (4, 8, 2, True, False, 0.0, True), {}),
    ("RNN", (4, 8, 2, "relu", True, False, 0.0, True), {}),
    ("RNNCell", (4, 8, True, "relu"), {}),
    *((f"{kind}Cell", (4, 8), kwargs) for kind in KINDS for kwargs in ({}, {"bias": False}, {"device": "meta"})),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "kwargs"), CONSTRUCTORS, ids=str)
def test_constructor(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    modules = []
    for package in (fused_rnn, torch.nn):
        torch.manual_seed(3)
        modules.append(getattr(package, name)(*args, **kwargs))
    ours, theirs = modules
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, torch.nn.RNNBase if "Cell" not in name else getattr(torch.nn, name))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (weight.shape, weight.dtype, weight.device) == (expected.shape, expected.dtype, expected.device)
        assert weight.is_meta or torch.equal(weight, expected)


def equal(ours: Any, theirs: Any, input: Any) -> None:
    """Assert that two float64 modules compute the same."""
    assert_all_accurate(dict(enumerate(flatten(ours(input)))), dict(enumerate(flatten(theirs(input)))))


@pytest.fixture(params=[*KINDS, *(f"{kind}Cell" for kind in KINDS)])
def pair(request: pytest.FixtureRequest, device: str) -> tuple[Any, Any, Tensor]:
    """One of our modules, torch.nn's with the same weights, and an input."""
    ours = getattr(fused_rnn, request.param)(4, 8).double().to(device)
    theirs = getattr(torch.nn, request.param)(4, 8).double().to(device)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randn(3, 4, dtype=torch.float64).to(device)


Pair = tuple[Any, Any, Tensor]


def test_state_dict_of_torch_loads(pair: Pair) -> None:
    ours, theirs, input = pair
    fresh = type(ours)(4, 8).double().to(input.device)
    fresh.load_state_dict(theirs.state_dict())
    equal(fresh, theirs, input)


def test_copies(pair: Pair) -> None:
    ours, theirs, input = pair
    for clone in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        equal(clone, theirs, input)
        with torch.no_grad():
            next(clone.parameters()).zero_()
        equal(ours, theirs, input)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    equal(torch.load(file, weights_only=False), theirs, input)


def test_changed_weights_are_noticed(pair: Pair) -> None:
    ours, theirs, input = pair
    name = next(name for name, _ in ours.named_parameters() if "weight_hh" in name)
    ours(input)
    for module in (ours, theirs):
        getattr(module, name).data.mul_(2)
    equal(ours, theirs, input)
    new = torch.randn_like(getattr(ours, name))
    for module in (ours, theirs):
        setattr(module, name, torch.nn.Parameter(new))
    equal(ours, theirs, input)
    for module in (ours, theirs):
        getattr(module, name).data = new * 3
    equal(ours, theirs, input)


def test_functional_call(pair: Pair) -> None:
    ours, theirs, input = pair
    doubled = {name: weight * 2 for name, weight in ours.named_parameters()}
    actual, expected = (flatten(torch.func.functional_call(module, doubled, (input,))) for module in (ours, theirs))
    assert_all_accurate(dict(enumerate(actual)), dict(enumerate(expected)))


def test_parametrization(pair: Pair) -> None:
    ours, theirs, input = pair
    name = next(name for name, _ in ours.named_parameters() if "weight_hh" in name)
    plain = getattr(ours, name).detach().clone()
    torch.nn.utils.parametrizations.weight_norm(ours, name)
    equal(ours, theirs, input)
    with torch.no_grad():
        getattr(ours.parametrizations, name).original0.mul_(2)
        getattr(theirs, name).copy_(2 * plain)
    equal(ours, theirs, input)
    flatten(ours(input))[0].sum().backward()
    assert getattr(ours.parametrizations, name).original1.grad is not None


def test_tied_weights(pair: Pair) -> None:
    ours, theirs, input = pair
    biases = [name for name, _ in ours.named_parameters() if "bias" in name]
    grads = []
    for module in (ours, theirs):
        setattr(module, biases[0], getattr(module, biases[1]))
        flatten(module(input))[0].sum().backward()
        grads.append({biases[1]: getattr(module, biases[1]).grad})
    assert_all_accurate(*grads)


def test_backward_in_eval_mode(pair: Pair) -> None:
    ours, _, input = pair
    flatten(ours.eval()(input))[0].sum().backward()
    assert all(weight.grad is not None for weight in ours.parameters())


def test_meta_device(pair: Pair) -> None:
    ours, theirs, input = pair
    input = input.to("meta")
    outputs = (flatten(module.to("meta")(input)) for module in (ours, theirs))
    for actual, expected in zip(*outputs, strict=True):
        assert actual.is_meta
        assert actual.shape == expected.shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [{}, {"batch_first": True}, {"lengths": (2, 5, 4)}, {"dropout": 1.0}], ids=str)
def test_dropout(kind: str, form: dict[str, Any]) -> None:
    """The dropout masks are those of torch.nn: the same in both passes, only in training, only between layers."""
    case = Case(kind, **{"num_layers": 3, "bidirectional": True, "dropout": 0.5, **form})
    assert_all_accurate(case.result(fused_rnn, torch.float64), case.torch_result(torch.float64))
    input, _ = case.tensors(torch.float64)
    equal(
        case.module(fused_rnn, torch.float64).eval(), case.module(torch.nn, torch.float64).eval(), case.in_form(input)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_obeys_the_seed(kind: str, device: str) -> None:
    module = getattr(fused_rnn, kind)(4, 8, 2, dropout=0.5, device=device)
    input = torch.randn(5, 3, 4, device=device)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(flatten(module(input))[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(5, 3, 1), (2, 5, 4)])
def test_packed_output_is_packed_like_the_input(kind: str, lengths: tuple[int, ...], device: str) -> None:
    case = Case(kind, lengths=lengths)
    packed = case.in_form(case.tensors(torch.float64, device)[0])
    (ours, _), (theirs, _) = (case.module(package, torch.float64, device)(packed) for package in (fused_rnn, torch.nn))
    assert isinstance(ours, torch.nn.utils.rnn.PackedSequence)
    fields: Any = zip(ours[1:], theirs[1:], strict=True)
    for actual, expected in fields:
        assert actual is expected or torch.equal(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_a_single_layer_warns(kind: str) -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        getattr(fused_rnn, kind)(4, 8, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(fused_rnn, kind)(4, 8, 2, dropout=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(pair: Pair, dtype: torch.dtype) -> None:
    """Autocast computes in the lower precision, with gradients in the weights' dtype; float64 is not converted."""
    ours, _, input = pair
    ours, input = ours.float(), input.float()
    expected = flatten(copy.deepcopy(ours).to(dtype)(input.to(dtype)))
    with torch.autocast(input.device.type, dtype):
        actual = flatten(ours(input))
        assert flatten(ours.double()(input.double()))[0].dtype == torch.float64
    assert all(map(torch.equal, actual, expected))
    actual[0].sum().backward()
    assert all(weight.grad is not None for weight in ours.parameters())
