"""One GRU layer over a sequence, in plain PyTorch, which defines the operator ``recurrent`` for the cell ``gru``."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fused_rnn.reference.gru_cell import gru_cell
from fused_rnn.reference.sequence import State, run_directions


def gru(
    input: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reset_after: bool = True,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """One GRU layer with all its directions; see :func:`fused_rnn.reference.gru_cell` for the equations.

    Args:
        input: ``[time, batch, input_size]``, or ``[rows, input_size]`` if packed.
        h0: ``[directions, batch, hidden_size]``.
        weights: for each direction ``weight_ih [3 * hidden_size, input_size]``, ``weight_hh [3 * hidden_size,
            hidden_size]``, then with biases ``bias_ih, bias_hh [3 * hidden_size]``.
        batch_sizes: ``[time]``, not increasing, how many sequences have each step of a packed input.
        lengths: ``[batch]``, the steps of each sequence of a padded input, 0 to time, in any order. Outputs past the
            end of a sequence are zero, and its final state is the one at its own end.
        reset_after: whether the reset gate acts after the recurrent product, as in torch.nn, or before it.
        resets: see :func:`fused_rnn.reference.recurrent`.
        reset_states: see :func:`fused_rnn.reference.recurrent`.

    Returns:
        The outputs, ``[time, batch, directions * hidden_size]`` or ``[rows, directions * hidden_size]``, and the final
        h, ``[directions, batch, hidden_size]``.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> weights = [torch.randn(24, 4), torch.randn(24, 8)]
        >>> output, h_n = reference.gru(torch.randn(5, 3, 4), torch.zeros(1, 3, 8), weights, lengths=[5, 0, 2])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """
    cell = partial(gru_step, reset_after=reset_after)
    (output,), (h_n,) = run_directions(cell, input, (h0,), weights, batch_sizes, lengths, resets, reset_states)
    return output, h_n


def gru_step(input: Tensor, state: State, weights: Sequence[Tensor], **options: Any) -> State:
    """One step of a GRU layer: :func:`fused_rnn.reference.gru_cell` with the state as a tuple."""
    return (gru_cell(input, *state, *weights, **options),)
