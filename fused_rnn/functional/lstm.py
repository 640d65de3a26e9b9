"""The function ``lstm``, which computes what the module :class:`fused_rnn.LSTM` does."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fused_rnn.functional.fx import node_of_graph
from fused_rnn.functional.recurrent import Sequences, mode_of, run

MODE = mode_of("LSTM", "lstm")


@node_of_graph
def lstm(
    input: Sequences,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: tuple[Tensor, Tensor] | None = None,
) -> tuple[Any, ...]:
    """Run sequences through one or more LSTM layers, as torch.nn.LSTM does.

    Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with the forget gate of Gers et al., 2000, and the
    optional projection of Sak et al., 2014; :func:`fused_rnn.reference.lstm_cell` states the equations.

    Args:
        input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, unbatched
            ``[time, input_size]``, or a PackedSequence, sorted or not.
        hx: the initial states h, ``[layers * directions, batch, output_size]``, and c, ``[layers * directions, batch,
            hidden_size]``, without ``batch`` if the input is unbatched; None for zero. ``output_size`` is ``proj_size``
            or ``hidden_size``.
        weights: for each layer and direction ``weight_ih [4 * hidden_size, input_size]``, ``weight_hh [4 * hidden_size,
            output_size]``, then with biases ``bias_ih, bias_hh [4 * hidden_size]``, then with a projection
            ``weight_hr [proj_size, hidden_size]``. Above the first layer ``input_size`` is ``directions *
            output_size``.
        num_layers: how many layers are stacked.
        bidirectional: whether each layer also runs backwards in time.
        dropout: the probability with which values between two layers become zero when training.
        training: whether dropout is on.
        batch_first: whether the batch comes before the time in ``input`` and ``output``; the states do not change.
        lengths: the steps of each sequence of a padded input, ``[batch]``, 0 to time, in any order, on any device, or
            a list; None for all of them. Outputs past the end of a sequence are zero, its final states are those at its
            own end, where the reverse direction begins, and nothing of the padding is read.
        return_states: whether to return c after every step of the last layer too.
        resets: before which steps the states become ``reset_states``, such as the first steps of episodes in a rollout:
            bool, shaped like ``input``, or the data of a PackedSequence, without its last dimension, on any device;
            None for no step. Each segment, from one reset to the next, is computed by itself, by the reverse direction
            from the segment's end. No gradient passes a reset.
        reset_states: what replaces the states there, h and c, each shaped like ``hx``, or ``[time, ...]`` of that,
            whose entry at each reset is taken; None for zero.

    Returns:
        The output in the form of the input, its last dimension ``directions * output_size``, and the final states
        ``(h_n, c_n)``, shaped like ``hx``. With ``return_states`` also c after every step of the last layer, in the
        form of the output, of size ``directions * hidden_size``; h after every step is the output.

    Raises:
        ValueError: ``input`` has a wrong rank, or a dtype other than the weights; ``lengths`` are of a wrong shape, out
            of range on the CPU, or given with a PackedSequence; ``resets`` or ``reset_states`` have a wrong shape or
            device, or there are ``reset_states`` without ``resets``.
        TypeError: ``lengths`` are not integers, ``resets`` are not bool, or ``reset_states`` have another dtype than
            ``input``.
        RuntimeError: sizes do not fit, there are no time steps, or tensors differ in dtype or device.
        NotImplementedError: there is no kernel for the dtype or device of ``input``.

    Example:
        >>> import torch
        >>> from fused_rnn import functional
        >>> weights = [torch.randn(32, 4), torch.randn(32, 8)]
        >>> output, (h_n, c_n) = functional.lstm(torch.randn(5, 3, 4), None, weights)
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]), torch.Size([1, 3, 8]))
    """
    if hx is not None and len(hx) != 2:
        raise RuntimeError("lstm expects two hidden states")
    output, h_n, c_n, *cells = run(
        MODE, input, hx, weights, num_layers, bidirectional, dropout if training else 0.0, batch_first,
        lengths, return_states, resets, reset_states,
    )  # fmt: skip
    return output, (h_n, c_n), *cells
