"""One layer of a plain recurrent network over a sequence, in plain PyTorch."""

from collections.abc import Sequence

from torch import Tensor

from fused_rnn.reference.recurrent import recurrent


def rnn(
    input: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    *,
    nonlinearity: str = "tanh",
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """One layer of a plain recurrent network with all its directions; see :func:`fused_rnn.reference.rnn_cell`.

    Args:
        input: ``[time, batch, input_size]``, or ``[rows, input_size]`` if packed.
        h0: ``[directions, batch, hidden_size]``.
        weights: for each direction ``weight_ih [hidden_size, input_size]``, ``weight_hh [hidden_size, hidden_size]``,
            then with biases ``bias_ih, bias_hh [hidden_size]``.
        batch_sizes: ``[time]``, not increasing, how many sequences have each step of a packed input.
        lengths: ``[batch]``, the steps of each sequence of a padded input, 0 to time, in any order. Outputs past the
            end of a sequence are zero, and its final state is the one at its own end.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        resets: see :func:`fused_rnn.reference.recurrent`.
        reset_states: see :func:`fused_rnn.reference.recurrent`.

    Returns:
        The outputs, ``[time, batch, directions * hidden_size]`` or ``[rows, directions * hidden_size]``, and the final
        h, ``[directions, batch, hidden_size]``.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> weights = [torch.randn(8, 4), torch.randn(8, 8)]
        >>> output, h_n = reference.rnn(torch.randn(5, 3, 4), torch.zeros(1, 3, 8), weights, lengths=[5, 0, 2])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """
    cell = f"rnn_{nonlinearity}"
    (output,), (h_n,) = recurrent(cell, input, (h0,), weights, batch_sizes, lengths, resets, reset_states)
    return output, h_n
