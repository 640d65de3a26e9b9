"""The call of a network at inference that leaves Python out gives what the general way gives, and only where it may."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from comparing import assert_identical
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from fused_rnn import ops

PLAIN = {"plain_recurrent": ops.plain_recurrent, "plain_frozen": ops.plain_frozen}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: fused_rnn.LSTM(5, 7),
    "LSTM, stacked": lambda: fused_rnn.LSTM(5, 7, num_layers=3, bidirectional=True),
    "LSTM, projected": lambda: fused_rnn.LSTM(5, 7, num_layers=2, proj_size=3, bias=False),
    "LSTM, batch_first": lambda: fused_rnn.LSTM(5, 7, num_layers=2, batch_first=True, dropout=0.5).eval(),
    "GRU": lambda: fused_rnn.GRU(5, 7, bidirectional=True),
    "GRU, stacked": lambda: fused_rnn.GRU(5, 7, num_layers=2, batch_first=True, bias=False),
    "RNN": lambda: fused_rnn.RNN(5, 7, num_layers=2, nonlinearity="relu"),
}
CELLS: dict[str, Callable[[], nn.Module]] = {
    "LSTMCell": lambda: fused_rnn.LSTMCell(5, 7),
    "LSTMCell, no bias": lambda: fused_rnn.LSTMCell(5, 7, bias=False),
    "GRUCell": lambda: fused_rnn.GRUCell(5, 7),
    "RNNCell": lambda: fused_rnn.RNNCell(5, 7),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call since the last clear(), whether it was plain."""
    calls: list[bool] = []

    def spy(function: Any, *args: Any) -> Any:
        results = function(*args)
        calls.append(results is not None)
        return results

    for name, function in PLAIN.items():
        monkeypatch.setattr(ops, name, partial(spy, function))
    return calls


def flat(results: Any) -> dict[str, Tensor]:
    """The tensors of a nested tuple."""
    if isinstance(results, Tensor):
        return {"": results}
    return {f"{i}{name}": tensor for i, result in enumerate(results) for name, tensor in flat(result).items()}


def general(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> dict[str, Tensor]:
    """What a call returns that takes the general way."""
    with monkeypatch.context() as patch:
        for name in PLAIN:
            patch.setattr(ops, name, lambda *args: None)
        return flat(call())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_same_bits(
    name: str,
    frozen: bool,
    with_states: bool,
    dtype: torch.dtype,
    taken: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    module = (LAYERS | CELLS)[name]().to(dtype).eval()
    if frozen:
        fused_rnn.freeze(module)
    # Not contiguous, and the batch differs from all other sizes.
    input = torch.randn(6, 5, 4, dtype=dtype).transpose(1, 2) if name in LAYERS else torch.randn(5, 4, dtype=dtype).t()
    with torch.no_grad():
        results = flat(module(input))
        states = [torch.randn_like(state) for key, state in results.items() if name in CELLS or key != "0"]
        hx = None if not with_states else tuple(states) if len(states) > 1 else states[0]
        taken.clear()
        actual = flat(module(input, hx))
        assert taken == [True]
        assert_identical(actual, general(monkeypatch, lambda: module(input, hx)))


class Subclass(Tensor):
    """A tensor that may do something else."""


LAYER, INPUT, STATE = fused_rnn.GRU(5, 7), torch.randn(3, 2, 5), torch.randn(1, 2, 7)
NOT_PLAIN: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[[], Any]]] = {
    "gradients": (nullcontext, lambda: LAYER(INPUT)),
    "gradient of the input": (nullcontext, lambda: frozen_parameters()(INPUT.clone().requires_grad_())),
    "gradient of a state": (nullcontext, lambda: frozen_parameters()(INPUT, STATE.clone().requires_grad_())),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), lambda: no_grad(LAYER, INPUT)),
    "vmap": (nullcontext, lambda: torch.func.vmap(lambda x: no_grad(LAYER, x))(INPUT.unsqueeze(0))),
    "forward mode": (forward_ad.dual_level, lambda: no_grad(LAYER, INPUT)),
    "a mode of dispatch": (lambda: FlopCounterMode(display=False), lambda: no_grad(LAYER, INPUT)),
    "a mode of functions": (lambda: torch.device("cpu"), lambda: no_grad(LAYER, INPUT)),
    "a trace": (nullcontext, lambda: torch.jit.trace(frozen_parameters(), (INPUT,), check_trace=False)),
    "a subclass": (nullcontext, lambda: no_grad(LAYER, INPUT.as_subclass(Subclass))),
    "a state of a subclass": (nullcontext, lambda: no_grad(LAYER, INPUT, STATE.as_subclass(Subclass))),
}


def frozen_parameters() -> fused_rnn.GRU:
    return fused_rnn.GRU(5, 7).requires_grad_(False)


def no_grad(module: nn.Module, *args: Any) -> Any:
    with torch.no_grad():
        return module(*args)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NOT_PLAIN)
def test_not_plain(name: str, taken: list[bool]) -> None:
    context, call = NOT_PLAIN[name]
    with context():
        call()
    assert taken
    assert not any(taken)


FROZEN = fused_rnn.GRU(5, 7).eval().freeze()
NOT_PLAIN_FROZEN: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[[], Any], str | None]] = {
    "gradients": (nullcontext, lambda: FROZEN(INPUT), "no gradients"),
    "gradient of a state": (
        nullcontext,
        lambda: frozen_parameters().eval().freeze()(INPUT, STATE.clone().requires_grad_()),
        "no gradients",
    ),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), lambda: no_grad(FROZEN, INPUT), "autocast"),
    "forward mode": (forward_ad.dual_level, lambda: no_grad(FROZEN, INPUT), "no derivatives"),
    "a mode of dispatch": (lambda: FlopCounterMode(display=False), lambda: no_grad(FROZEN, INPUT), None),
    "a mode of functions": (lambda: torch.device("cpu"), lambda: no_grad(FROZEN, INPUT), None),
    "a state of a subclass": (nullcontext, lambda: no_grad(FROZEN, INPUT, STATE.as_subclass(Subclass)), None),
}


@pytest.mark.parametrize("name", NOT_PLAIN_FROZEN)
def test_not_plain_frozen(name: str, taken: list[bool]) -> None:
    context, call, error = NOT_PLAIN_FROZEN[name]
    with context(), nullcontext() if error is None else pytest.raises((RuntimeError, NotImplementedError), match=error):
        call()
    assert taken
    assert not any(taken)


def test_other_arguments_take_the_general_way(taken: list[bool]) -> None:
    with torch.no_grad():
        LAYER(INPUT, lengths=[3, 1])
        LAYER(INPUT, resets=torch.zeros(3, 2, dtype=torch.bool))
        LAYER(INPUT[:, 0])
        LAYER(nn.utils.rnn.pack_sequence([INPUT[:, 0], INPUT[:2, 1]]))
        fused_rnn.LSTM(5, 7)(INPUT, return_states=True)
        fused_rnn.LSTM(5, 7, num_layers=2, dropout=0.5)(INPUT)
        fused_rnn.GRUCell(5, 7)(INPUT[0, 0])
        fused_rnn.GRUCell(5, 7)(INPUT[0], reset=torch.tensor([True, False]))
        FROZEN(INPUT, lengths=[3, 1])
        FROZEN(INPUT[:, 0])
        FROZEN(INPUT.as_subclass(Subclass))
    assert not taken


@pytest.mark.parametrize(
    ("input", "hx", "error"),
    [
        (torch.randn(3, 2, 6), None, RuntimeError),
        (torch.randn(3, 2, 5, dtype=torch.float64), None, ValueError),
        (torch.randn(0, 2, 5), None, RuntimeError),
        (torch.randn(3, 2, 5, 1), None, ValueError),
        (INPUT, torch.randn(1, 3, 7), RuntimeError),
        (INPUT, torch.randn(2, 2, 7), RuntimeError),
        (INPUT, torch.randn(2, 7), RuntimeError),
    ],
)
def test_exceptions_are_those_of_torch(input: Tensor, hx: Tensor | None, error: type[Exception]) -> None:
    with torch.no_grad():
        with pytest.raises(error) as theirs:
            nn.GRU(5, 7)(input, hx)
        with pytest.raises(error) as ours:
            LAYER(input, hx)
    assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]
