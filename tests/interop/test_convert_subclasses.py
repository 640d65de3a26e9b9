"""convert with subclasses=True: a module remains an instance of its class, but what it inherits is replaced."""

import copy
import pickle
from abc import ABC
from typing import Any

import pytest
from comparing import assert_all_accurate, assert_identical
from conversions import run
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fused_rnn


class Plain(nn.LSTM):
    """A subclass that overrides only the constructor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls = 0


class Counting(nn.GRU):
    """A subclass that adds to forward."""

    calls = 0

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        self.calls += 1
        output, h_n = super().forward(input, hx)
        return 2 * output, h_n


class Cell(nn.LSTMCell):
    """A subclass of a cell."""


class Elman(nn.RNN):
    """A subclass whose constructor fixes options of the base class."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, nonlinearity="relu", bias=False)


class ElmanCell(nn.RNNCell):
    """A subclass whose constructor fixes the nonlinearity of a cell."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, nonlinearity="relu")


class Abstract(ABC, nn.RNNBase):
    """A base whose memory layout is not that of torch.nn.Module."""

    def forward(self, *args: Any) -> Any:
        return super().forward(*args)


class Concrete(Abstract, nn.GRU):
    """A subclass with several bases."""


SUBCLASSES = [
    (Plain, "LSTM"),
    (Counting, "GRU"),
    (Elman, "RNN"),
    (Cell, "LSTMCell"),
    (ElmanCell, "RNNCell"),
    (Concrete, "GRU"),
]


@pytest.fixture(params=SUBCLASSES, ids=str)
def subclass(request: pytest.FixtureRequest) -> tuple[nn.Module, str]:
    cls, name = request.param
    return cls(4, 8).double(), name


def test_subclasses_are_kept_unless_asked_for(subclass: tuple[nn.Module, str]) -> None:
    module, name = subclass
    cls = type(module)
    report = fused_rnn.convert(module)
    assert type(module) is cls
    assert not report.replaced
    assert f"{cls.__name__} is a subclass of torch.nn.{name}; subclasses=True converts it" in str(report)


def test_subclasses(subclass: tuple[nn.Module, str], calls: list[str]) -> None:
    module, name = subclass
    cls, expected = type(module), run(module)
    assert calls == []
    report = fused_rnn.convert(module, subclasses=True)
    assert f"{cls.__name__} on fused_rnn.{name}" in str(report)
    assert isinstance(module, cls)
    assert repr(module).startswith(cls.__name__)
    assert_all_accurate(run(module), expected)
    assert calls == [name.lower().replace("cell", "_cell")]
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(clone) is type(module)
        assert_all_accurate(run(clone), expected)
    assert fused_rnn.convert(module, subclasses=True).replaced == ()
    fused_rnn.revert(module)
    assert type(module) is cls
    assert_identical(run(module), expected)


def test_a_parametrized_subclass(calls: list[str]) -> None:
    module = Counting(4, 8).double()
    parametrizations.weight_norm(module, "weight_hh_l0")
    expected = run(module)
    fused_rnn.convert(module, subclasses=True)
    assert_all_accurate(run(module), expected)
    assert calls == ["gru"]
    fused_rnn.revert(module)
    assert_identical(run(module), expected)
