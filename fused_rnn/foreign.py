"""Makes layers and cells from the weights of another framework; shared by the conversions from Keras and ONNX."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fused_rnn.modules import GRU, LSTM, RNN, GRUCell, GRUCellResetBefore, GRUResetBefore, LSTMCell, RNNCell

Kind = Literal["LSTM", "GRU", "RNN"]
Layer = LSTM | GRU | GRUResetBefore | RNN
Cell = LSTMCell | GRUCell | GRUCellResetBefore | RNNCell
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""weight_ih, weight_hh, bias_ih and bias_hh of one direction, with the shapes and the order of gates of torch.nn."""


class Network(NamedTuple):
    """What a layer or cell computes, apart from its sizes."""

    kind: Kind
    reset_after: bool = True
    """Whether a GRU's reset gate acts after the recurrent product; not used for other kinds."""
    nonlinearity: str = "tanh"
    """The nonlinearity of an RNN, "tanh" or "relu"; not used for other kinds."""


# For each kind, the class of the layer and the class of the cell.
CLASSES: dict[Kind, tuple[type[Layer], type[Cell]]] = {
    "LSTM": (LSTM, LSTMCell),
    "GRU": (GRU, GRUCell),
    "RNN": (RNN, RNNCell),
}
RESET_BEFORE: tuple[type[Layer], type[Cell]] = (GRUResetBefore, GRUCellResetBefore)


def reorder(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Return ``[gates * size, ...]`` with its gates in another order: first gate ``order[0]``, then ``order[1]`` ..."""
    gates = tensor.chunk(len(order))
    return torch.cat([gates[gate] for gate in order])


def layer_of(network: Network, directions: Sequence[Weights], batch_first: bool) -> Layer:
    """Return a layer with the weights of its one or two directions, in their dtype.

    Args:
        network: what the layer computes.
        directions: the weights of each direction.
        batch_first: the layer's option.

    Raises:
        ValueError: the weights do not fit each other.
    """
    layer, _ = _classes(network)
    return _filled(layer, network, directions, batch_first=batch_first, bidirectional=len(directions) == 2)


def cell_of(network: Network, weights: Weights) -> Cell:
    """Return a cell with ``weights``, in their dtype; see :func:`layer_of` for the arguments.

    Raises:
        ValueError: the weights do not fit each other.
    """
    _, cell = _classes(network)
    return _filled(cell, network, [weights])


def _classes(network: Network) -> tuple[type[Layer], type[Cell]]:
    """Return the class of the layer and the class of the cell."""
    resets_before = network.kind == "GRU" and not network.reset_after
    return RESET_BEFORE if resets_before else CLASSES[network.kind]


def _filled(cls: Any, network: Network, directions: Sequence[Weights], **options: bool) -> Any:
    """Return a ``cls`` with the sizes of the weights and a copy of them as its parameters."""
    weight_ih, weight_hh, bias, _ = directions[0]
    variant = {"nonlinearity": network.nonlinearity} if network.kind == "RNN" else {}
    module = cls(
        weight_ih.size(1), weight_hh.size(1), bias=bias is not None, dtype=weight_ih.dtype, **options, **variant
    )
    sources = [weight for weights in directions for weight in weights if weight is not None]
    parameters = list(module.named_parameters())
    if len(sources) != len(parameters):
        raise ValueError("weights must have biases in both directions or in none")
    for (name, parameter), source in zip(parameters, sources, strict=True):
        if parameter.shape != source.shape:
            raise ValueError(
                f"weights must fit each other: {name} is {list(source.shape)}, not {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(source)
    return module
