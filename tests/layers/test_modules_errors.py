"""Errors of invalid input: torch.nn's exception and message, or a clear one where torch.nn fails by accident."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CELLS, KINDS, hx_of, structure_of
from torch import Tensor, randn
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import functional

F64, COMPLEX = torch.float64, torch.complex64
# Calls for which torch.nn with cuDNN has other messages.
ABOUT_DEVICES = {"input device", "hx device"}


def pack(*lengths: int) -> PackedSequence:
    return pack_padded_sequence(torch.zeros(3, 2, 4), lengths, enforce_sorted=False)  # type: ignore[arg-type]


def packed(rows: int, sizes: list[int], dtype: torch.dtype = torch.int64) -> PackedSequence:
    return PackedSequence(torch.zeros(rows, 4), torch.tensor(sizes, dtype=dtype, device="cpu"))


def states(kind: str, *shape: int, **kwargs: Any) -> Any:
    """Return initial states of one shape in the form that a layer or cell takes."""
    return hx_of([randn(shape, **kwargs)] * structure_of(kind).states)


# Calls for which torch.nn raises the same error. Each is called with a module of input size 4 and hidden size 8, and
# its kind.
Call = Callable[[torch.nn.Module, str], Any]
LAYER_CALLS: dict[str, Call] = {
    "no steps": lambda m, _: m(randn(0, 2, 4)),
    "no steps, unbatched": lambda m, _: m(randn(0, 4)),
    "1-D input": lambda m, _: m(randn(4)),
    "4-D input": lambda m, _: m(randn(1, 1, 1, 4)),
    "input size": lambda m, _: m(randn(3, 2, 5)),
    "integer input": lambda m, _: m(torch.ones(3, 2, 4, dtype=torch.long)),
    "input dtype": lambda m, _: m(randn(3, 2, 4, dtype=F64)),
    "input device": lambda m, _: m(randn(3, 2, 4, device="meta")),
    "hx device": lambda m, k: m(randn(3, 2, 4), states(k, 1, 2, 8, device="meta")),
    "hx batch": lambda m, k: m(randn(3, 2, 4), states(k, 1, 3, 8)),
    "hx size": lambda m, k: m(randn(3, 2, 4), states(k, 1, 2, 7)),
    "hx layers": lambda m, k: m(randn(3, 2, 4), states(k, 2, 2, 8)),
    "2-D hx": lambda m, k: m(randn(3, 2, 4), states(k, 2, 8)),
    "3-D hx, unbatched": lambda m, k: m(randn(3, 4), states(k, 1, 1, 8)),
    "hx layers, unbatched": lambda m, k: m(randn(3, 4), states(k, 2, 8)),
    "list": lambda m, _: m([1.0, 2.0]),
}
CELL_CALLS: dict[str, Call] = {
    "0-D input": lambda m, _: m(randn(())),
    "3-D input": lambda m, _: m(randn(1, 1, 4)),
    "input size": lambda m, _: m(randn(2, 5)),
    "3-D hx": lambda m, k: m(randn(1, 4), states(k, 1, 1, 8)),
    "hx size": lambda m, k: m(randn(2, 4), states(k, 2, 9)),
    "hx batch": lambda m, k: m(randn(2, 4), states(k, 3, 8)),
}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        *((kind, call) for kind in KINDS for call in LAYER_CALLS),
        *((f"{kind}Cell", call) for kind in KINDS for call in CELL_CALLS),
    ],
)
def test_same_exception_as_torch(name: str, call: str, device: str) -> None:
    if device != "cpu" and call in ABOUT_DEVICES:
        pytest.skip("with cuDNN torch.nn uses other words")
    function = (CELL_CALLS if name.endswith("Cell") else LAYER_CALLS)[call]
    raised = []
    for package in (fused_rnn, torch.nn):
        with torch.device(device), pytest.raises(Exception) as info:  # noqa: PT011  (compared below)
            function(getattr(package, name)(4, 8), name.removesuffix("Cell"))
        raised.append((info.type, str(info.value)))
    assert raised[0] == raised[1]


BAD_CONSTRUCTORS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((4, 0), {}), ((4, -1), {}), ((0, 8), {}), ((4, 8.0), {}), ((4.0, 8), {}), ((4, 8, 0), {}),
    ((4, 8), {"dropout": 1.5}), ((4, 8), {"dropout": True}), ((4, 8), {"bias": 1}), ((4, 8), {"batch_first": 1}),
    ((4, 8), {"proj_size": 8}), ((4, 8), {"proj_size": -1}),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs"), BAD_CONSTRUCTORS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_constructors_raise_as_torch(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raised = []
    for package in (fused_rnn, torch.nn):
        with pytest.raises((ValueError, TypeError)) as info:
            getattr(package, kind)(*args, **kwargs)
        raised.append((info.type, str(info.value)))
    assert raised[0] == raised[1]


def with_weight(module: torch.nn.Module, name: str, value: Tensor) -> torch.nn.Module:
    """Replace a weight of a cell, or of layer 0 of a layer."""
    setattr(module, name if hasattr(module, name) else f"{name}_l0", Parameter(value))
    return module


def x() -> Tensor:
    return randn(3, 2, 4)


def y() -> Tensor:
    return randn(2, 4)


# Calls that torch.nn accepts, or for which it fails in some inner operation: (call, our exception, our message).
OWN_LAYER_CALLS: dict[str, tuple[Call, type[Exception], str]] = {
    "hx dtype": (
        lambda m, k: m(x(), states(k, 1, 2, 8, dtype=F64)),
        RuntimeError,
        "hidden tensors are not the same dtype",
    ),
    "packed hx batch": (lambda m, k: m(pack(3, 2), states(k, 1, 3, 8)), RuntimeError, "Expected hidden.* size"),
    "unsorted hx batch": (lambda m, k: m(pack(2, 3), states(k, 1, 3, 8)), RuntimeError, "Expected hidden.* size"),
    "packed 2-D hx": (lambda m, k: m(pack(3, 2), states(k, 2, 8)), RuntimeError, "should also be 3-D"),
    "packed rank": (
        lambda m, _: m(PackedSequence(x(), torch.tensor([2, 1], device="cpu"))),
        RuntimeError,
        "must have 2 dimensions",
    ),
    "packed size": (
        lambda m, _: m(pack_padded_sequence(randn(3, 2, 5), [3, 2])),
        RuntimeError,
        "input_size. Expected 4",
    ),
    "packed dtype": (lambda m, _: m(pack_padded_sequence(x().double(), [3, 2])), ValueError, "RNN input dtype"),
    "packed, no steps": (lambda m, _: m(packed(0, [])), RuntimeError, "sequence length to be larger than 0"),
    "too many rows": (lambda m, _: m(packed(7, [2, 2, 1])), RuntimeError, "batch_sizes"),
    "too few rows": (lambda m, _: m(packed(4, [2, 2, 1])), RuntimeError, "batch_sizes"),
    "increasing": (lambda m, _: m(packed(5, [1, 2, 2])), RuntimeError, "batch_sizes"),
    "negative": (lambda m, _: m(packed(4, [2, 3, -1])), RuntimeError, "batch_sizes"),
    "float batch_sizes": (lambda m, _: m(packed(5, [2, 2, 1], torch.float32)), RuntimeError, "batch_sizes"),
    "weight_ih": (lambda m, _: with_weight(m, "weight_ih", randn(5, 4))(x()), RuntimeError, "weight|hidden"),
    "weight_hh": (lambda m, _: with_weight(m, "weight_hh", randn(5, 8))(x()), RuntimeError, "weight_hh"),
    "weight_hh rank": (lambda m, _: with_weight(m, "weight_hh", randn(8))(x()), RuntimeError, "weight_hh"),
    "bias_ih": (lambda m, _: with_weight(m, "bias_ih", randn(31))(x()), RuntimeError, "bias_ih"),
    "bias_hh": (lambda m, _: with_weight(m, "bias_hh", randn(1))(x()), RuntimeError, "bias_hh"),
    "bias dtype": (lambda m, _: with_weight(m, "bias_hh", randn(32).double())(x()), RuntimeError, "not the same dtype"),
    "complex": (lambda m, _: type(m)(4, 8, dtype=COMPLEX)(x().to(COMPLEX)), NotImplementedError, "input.*complex64"),
}
OWN_CELL_CALLS: dict[str, tuple[Call, type[Exception], str]] = {
    "1-D hx": (lambda m, k: m(y(), states(k, 8)), RuntimeError, "to be 2D as input is"),
    "2-D hx, unbatched": (lambda m, k: m(y()[0], states(k, 1, 8)), RuntimeError, "to be 1D as input is"),
    "integer input": (lambda m, _: m(y().long()), RuntimeError, "parameter tensors are not the same dtype"),
    "input dtype": (lambda m, _: m(y().double()), RuntimeError, "parameter tensors are not the same dtype"),
    "hx dtype": (
        lambda m, k: m(y(), states(k, 2, 8, dtype=F64)),
        RuntimeError,
        "hidden tensors are not the same dtype",
    ),
    "hx device": (
        lambda m, k: m(y(), states(k, 2, 8, device="meta")),
        RuntimeError,
        "hidden tensors are not at the same",
    ),
    "weight_ih": (lambda m, _: with_weight(m, "weight_ih", randn(5, 4))(y()), RuntimeError, "weight_ih"),
    "weight_hh": (lambda m, _: with_weight(m, "weight_hh", randn(5, 8))(y()), RuntimeError, "weight_hh"),
    "bias_ih": (lambda m, _: with_weight(m, "bias_ih", randn(5))(y()), RuntimeError, "bias_ih"),
    "complex": (lambda m, _: type(m)(4, 8, dtype=COMPLEX)(y().to(COMPLEX)), NotImplementedError, "input.*complex64"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        *((kind, call) for kind in KINDS for call in OWN_LAYER_CALLS),
        *((f"{kind}Cell", call) for kind in KINDS for call in OWN_CELL_CALLS),
    ],
)
def test_own_exceptions(name: str, call: str, training: bool, device: str) -> None:
    function, exception, words = (OWN_CELL_CALLS if name.endswith("Cell") else OWN_LAYER_CALLS)[call]
    with torch.set_grad_enabled(training), torch.device(device), pytest.raises(exception, match=words):
        function(getattr(fused_rnn, name)(4, 8), name.removesuffix("Cell"))


@pytest.mark.parametrize("count", [0, 1, 3, 5, 8])
def test_number_of_weights(count: int) -> None:
    with pytest.raises(RuntimeError, match="number of RNN parameters"):
        functional.gru(x(), None, [randn(24, 4)] * count)


@pytest.mark.parametrize("count", [1, 3])
def test_lstm_needs_two_states(count: int) -> None:
    with pytest.raises(RuntimeError, match="lstm expects two hidden states"):
        functional.lstm(x(), (randn(1, 2, 8),) * count, [randn(32, 4), randn(32, 8)])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="lstm_cell expects two hidden states"):
        functional.lstm_cell(y(), (randn(2, 8),) * count, randn(32, 4), randn(32, 8))  # type: ignore[arg-type]


def operands(kind: str) -> tuple[str, list[Tensor], list[Tensor]]:
    """Return the name of a cell, and initial states and weights for x()."""
    structure = structure_of(kind)
    rows = structure.gates * 8
    return CELLS[kind], [randn(1, 2, 8)] * structure.states, [randn(rows, 4), randn(rows, 8)]


@pytest.mark.parametrize("layer", [fused_rnn.GRU, fused_rnn.RNN])
def test_only_an_lstm_has_a_projection(layer: Any) -> None:
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        layer(4, 8, proj_size=3)
