"""Makes a layer or cell from the weights of another framework: what Keras and ONNX share."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fused_rnn.modules import GRU, LSTM, GRUCell, GRUCellResetBefore, GRUResetBefore, LSTMCell

Kind = Literal["LSTM", "GRU"]
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""weight_ih, weight_hh, bias_ih and bias_hh of one direction, shapes and gates as in torch.nn."""


def reorder(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Return ``[gates * size, ...]`` with its gates in another order: first the one that lies at ``order[0]``."""
    gates = tensor.chunk(len(order))
    return torch.cat([gates[gate] for gate in order])


def layer_of(
    kind: Kind, directions: Sequence[Weights], batch_first: bool, reset_after: bool
) -> LSTM | GRU | GRUResetBefore:
    """Return a layer with the weights of its one or two directions, in their dtype.

    Args:
        kind: of which kind; a GRU can be of either variant.
        directions: the weights of each direction.
        batch_first: as for the layer.
        reset_after: whether a GRU's reset gate acts after the recurrent product.

    Raises:
        ValueError: the weights do not fit each other.
    """
    weight_ih, weight_hh, bias, _ = directions[0]
    cls = LSTM if kind == "LSTM" else GRU if reset_after else GRUResetBefore
    layer = cls(
        weight_ih.size(1),
        weight_hh.size(1),
        bias=bias is not None,
        batch_first=batch_first,
        bidirectional=len(directions) == 2,
        dtype=weight_ih.dtype,
    )
    _fill(layer, directions)
    return layer


def cell_of(kind: Kind, weights: Weights, reset_after: bool) -> LSTMCell | GRUCell | GRUCellResetBefore:
    """Return a cell with ``weights``, in their dtype; see :func:`layer_of` for the arguments.

    Raises:
        ValueError: the weights do not fit each other.
    """
    weight_ih, weight_hh, bias, _ = weights
    cls = LSTMCell if kind == "LSTM" else GRUCell if reset_after else GRUCellResetBefore
    cell = cls(weight_ih.size(1), weight_hh.size(1), bias=bias is not None, dtype=weight_ih.dtype)
    _fill(cell, [weights])
    return cell


def _fill(module: torch.nn.Module, directions: Sequence[Weights]) -> None:
    """Copy the weights into the parameters of a module."""
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
