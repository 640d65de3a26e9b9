"""One recurrent layer of any cell over a sequence, in plain PyTorch: the definition of the operator ``recurrent``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fused_rnn.reference.gru import gru_step
from fused_rnn.reference.lstm_cell import lstm_cell
from fused_rnn.reference.rnn_cell import rnn_cell
from fused_rnn.reference.sequence import State, run_directions


def _lstm(input: Tensor, state: State, weights: Sequence[Tensor], **options: Any) -> State:
    projected = len(weights) % 2 == 1
    weight_hr = weights[-1] if projected else None
    weight_ih, weight_hh, *biases = weights[:-1] if projected else weights
    bias_ih, bias_hh = biases or (None, None)
    h, c = state
    return lstm_cell(input, h, c, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, **options)


def _rnn(input: Tensor, state: State, weights: Sequence[Tensor], **options: Any) -> State:
    return (rnn_cell(input, *state, *weights, **options),)


CELLS: dict[str, Callable[..., State]] = {
    "lstm": _lstm,
    "gru": gru_step,
    "rnn_tanh": partial(_rnn, nonlinearity="tanh"),
    "rnn_relu": partial(_rnn, nonlinearity="relu"),
}
"""One step of each cell, which maps an input, the states and one direction's weights to the new states, h first."""


def recurrent(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
    **options: Any,
) -> tuple[State, State]:
    """One recurrent layer with all its directions.

    Args:
        cell: ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        input: ``[time, batch, input_size]``, or ``[rows, input_size]`` if packed.
        states: the initial states, h first, each ``[directions, batch, size]``.
        weights: for each direction ``weight_ih``, ``weight_hh``, then with biases ``bias_ih, bias_hh``, then with a
            projection ``weight_hr``; the cell's reference, such as :func:`fused_rnn.reference.lstm_cell`, states their
            shapes.
        batch_sizes: ``[time]``, not increasing, how many sequences have each step of a packed input.
        lengths: ``[batch]``, the steps of each sequence of a padded input, 0 to time, in any order.
        resets: ``[time, batch]``, or ``[rows]`` if packed, bool: before which steps the states are replaced, so that
            each segment from one reset to the next is computed by itself, by the second direction from its end.
        reset_states: for each state what replaces it at a reset, shaped like it, or ``[time, ...]`` of that; empty for
            zero.
        options: options of the cell, such as ``linear``, see :func:`fused_rnn.reference.lstm_cell`.

    Returns:
        The states after every step, h first, each ``[time, batch, directions * size]`` or ``[rows, directions *
        size]``; and the final states, each ``[directions, batch, size]``.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> weights = [torch.randn(24, 4), torch.randn(24, 8)]
        >>> (output,), (h_n,) = reference.recurrent("gru", torch.randn(5, 3, 4), [torch.zeros(1, 3, 8)], weights)
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """
    return run_directions(
        partial(CELLS[cell], **options), input, tuple(states), weights, batch_sizes, lengths, resets, reset_states
    )
