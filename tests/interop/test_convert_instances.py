"""convert with keep_isinstance=True: a layer is an instance of torch.nn's class, too; and packages that need it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import KINDS
from comparing import assert_all_accurate, assert_identical
from conversions import INPUT, layer, run
from torch import nn
from torch.nn.utils import parametrizations

import fused_rnn


def converted(module: nn.Module) -> Any:
    return fused_rnn.convert(module, keep_isinstance=True).model


@pytest.mark.parametrize("name", KINDS)
def test_it_is_an_instance_of_both(name: str) -> None:
    module = layer(name)
    expected, before, shown = run(module), dict(vars(module)), repr(module)
    report = fused_rnn.convert(module, keep_isinstance=True)
    assert isinstance(module, getattr(nn, name))
    assert isinstance(module, getattr(fused_rnn, name))
    assert f"torch.nn.{name} -> fused_rnn.{name}, which is a torch.nn.{name} too" in str(report)
    assert repr(module) == shown
    assert vars(module) == before
    assert_all_accurate(run(module), expected)
    assert fused_rnn.explain(module, INPUT).startswith(f"{name} on cpu")
    fused_rnn.revert(module)
    assert type(module) is getattr(nn, name)
    assert_identical(run(module), expected)


@pytest.mark.parametrize("name", KINDS)
def test_our_forward_runs(name: str, calls: list[str]) -> None:
    module = converted(layer(name))
    module(INPUT, lengths=[5, 0, 2])
    assert calls == [name.lower()]


@pytest.mark.parametrize("name", KINDS)
def test_copies(name: str) -> None:
    module = converted(layer(name))
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(again) is type(module)
        assert list(again.state_dict()) == list(module.state_dict())
        assert_identical(run(again), run(module))
    made = type(module)(4, 8, 2, bidirectional=True)
    assert [weight.shape for weight in made.parameters()] == [
        weight.shape for weight in getattr(nn, name)(4, 8, 2, bidirectional=True).parameters()
    ]


@pytest.mark.parametrize("name", KINDS)
def test_parametrized(name: str) -> None:
    module = layer(name)
    parametrizations.weight_norm(module, "weight_hh_l0")
    expected = run(module)
    converted(module)
    assert isinstance(module, getattr(nn, name))
    assert isinstance(module, getattr(fused_rnn, name))
    assert_all_accurate(run(module), expected)
    assert_identical(run(fused_rnn.revert(module).model), expected)


@pytest.mark.parametrize("name", KINDS)
def test_our_own_layers(name: str) -> None:
    module = layer(name, fused_rnn)
    assert not isinstance(module, getattr(nn, name))
    assert isinstance(converted(module), getattr(nn, name))
    assert fused_rnn.convert(module).replaced == ()
    assert fused_rnn.convert(module, keep_isinstance=True).replaced == ()


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_are_instances_anyway(name: str) -> None:
    assert type(converted(layer(name))) is getattr(fused_rnn, name)
    assert issubclass(getattr(fused_rnn, name), getattr(nn, name))


@pytest.mark.parametrize("name", KINDS)
def test_the_price_is_that_torch_compile_refuses(name: str) -> None:
    """That is why our layers are not such instances by themselves. A setting of torch.compile lifts the refusal."""
    module = converted(layer(name))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(module, backend="eager", fullgraph=True)(INPUT)
    with torch._dynamo.config.patch(allow_rnn=True):
        output, _ = torch.compile(module, backend="eager", fullgraph=True)(INPUT)
    assert torch.equal(output, module(INPUT)[0])


class Asking(nn.Module):
    """A module like those of a package that asks for torch.nn's class."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8)
        self.cell = nn.LSTMCell(4, 8)


def test_the_report_names_a_package_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asking, "__module__", "torchrl.modules.rnn")
    note = "policy.lstm: torchrl asks whether it is a torch.nn.LSTM: convert with keep_isinstance=True"
    assert note in fused_rnn.convert(nn.ModuleDict({"policy": Asking()})).notes
    assert "torchrl" not in str(fused_rnn.convert(nn.ModuleDict({"policy": Asking()}), keep_isinstance=True))
    monkeypatch.undo()
    assert "torchrl" not in str(fused_rnn.convert(nn.ModuleDict({"policy": Asking()})))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("keep_isinstance", [False, True])
def test_dynamic_quantization_passes_over_converted_layers(keep_isinstance: bool) -> None:
    """It compares the class itself. The report says so, and a reverted model is quantized."""
    quantize = torch.ao.quantization.quantize_dynamic
    model = nn.Sequential(nn.LSTM(4, 8))
    report = fused_rnn.convert(model, keep_isinstance=keep_isinstance)
    assert "quantize_dynamic" in str(report)
    assert type(quantize(model, {nn.LSTM})[0]) is type(model[0])
    report = fused_rnn.revert(model)
    assert "quantize_dynamic" not in str(report)
    assert isinstance(quantize(model, {nn.LSTM})[0], torch.ao.nn.quantized.dynamic.LSTM)
