"""One LSTM layer over a sequence, in plain PyTorch, which defines the operator ``recurrent`` for the cell ``lstm``."""

from collections.abc import Sequence

from torch import Tensor

from fused_rnn.reference.recurrent import recurrent


def lstm(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """One LSTM layer with all its directions; see :func:`fused_rnn.reference.lstm_cell` for the equations.

    Args:
        input: ``[time, batch, input_size]``, or ``[rows, input_size]`` if packed.
        h0: ``[directions, batch, output_size]``, where ``output_size`` is ``proj_size`` or ``hidden_size``.
        c0: ``[directions, batch, hidden_size]``.
        weights: for each direction ``weight_ih [4 * hidden_size, input_size]``, ``weight_hh [4 * hidden_size,
            output_size]``, then with biases ``bias_ih, bias_hh [4 * hidden_size]``, then with a projection
            ``weight_hr [proj_size, hidden_size]``.
        batch_sizes: ``[time]``, not increasing, how many sequences have each step of a packed input.
        lengths: ``[batch]``, the steps of each sequence of a padded input, 0 to time, in any order. Outputs past the
            end of a sequence are zero, and its final states are those at its own end.
        return_states: whether to return c after every step as well.
        resets: see :func:`fused_rnn.reference.recurrent`.
        reset_states: see :func:`fused_rnn.reference.recurrent`.

    Returns:
        The outputs, ``[time, batch, directions * output_size]`` or ``[rows, directions * output_size]``, the final h,
        ``[directions, batch, output_size]``, and the final c, ``[directions, batch, hidden_size]``; with
        ``return_states`` also c after every step, in the layout of the outputs, of size ``directions * hidden_size``.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> weights = [torch.randn(32, 4), torch.randn(32, 8)]
        >>> output, h_n, c_n = reference.lstm(
        ...     torch.randn(5, 3, 4), torch.zeros(1, 3, 8), torch.zeros(1, 3, 8), weights, lengths=[5, 0, 2]
        ... )
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """
    (output, cells), (h_n, c_n) = recurrent(
        "lstm", input, (h0, c0), weights, batch_sizes, lengths, resets, reset_states
    )
    return (output, h_n, c_n, cells) if return_states else (output, h_n, c_n)
