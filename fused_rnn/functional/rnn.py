"""The function ``rnn``, which computes what the module :class:`fused_rnn.RNN` does."""

from collections.abc import Sequence

from torch import Tensor

from fused_rnn.functional.fx import node_of_graph
from fused_rnn.functional.recurrent import Sequences, mode_of, run

MODES = {nonlinearity: mode_of("RNN", f"rnn_{nonlinearity}") for nonlinearity in ("tanh", "relu")}


@node_of_graph
def rnn(
    input: Sequences,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    resets: Tensor | None = None,
    reset_states: Tensor | None = None,
) -> tuple[Sequences, Tensor]:
    """Run sequences through one or more layers of a plain recurrent network, as torch.nn.RNN does.

    Elman, "Finding Structure in Time", 1990; :func:`fused_rnn.reference.rnn_cell` states the equation.

    Args:
        input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, unbatched
            ``[time, input_size]``, or a PackedSequence, sorted or not.
        hx: the initial state, ``[layers * directions, batch, hidden_size]``, without ``batch`` if the input is
            unbatched; None for zero.
        weights: for each layer and direction ``weight_ih [hidden_size, input_size]``, ``weight_hh [hidden_size,
            hidden_size]``, then with biases ``bias_ih, bias_hh [hidden_size]``. Above the first layer ``input_size`` is
            ``directions * hidden_size``.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        num_layers: how many layers are stacked.
        bidirectional: whether each layer also runs backwards in time.
        dropout: the probability with which values between two layers become zero when training.
        training: whether dropout is on.
        batch_first: whether the batch comes before the time in ``input`` and ``output``; the state does not change.
        lengths: the steps of each sequence of a padded input, ``[batch]``, 0 to time, in any order, on any device, or
            a list; None for all of them. Outputs past the end of a sequence are zero, its final state is the one at its
            own end, where the reverse direction begins, and nothing of the padding is read.
        resets: before which steps the state becomes ``reset_states``, such as the first steps of episodes in a rollout:
            bool, shaped like ``input``, or the data of a PackedSequence, without its last dimension, on any device;
            None for no step. Each segment, from one reset to the next, is computed by itself, by the reverse direction
            from the segment's end. No gradient passes a reset.
        reset_states: what replaces the state there, shaped like ``hx``, or ``[time, ...]`` of that, whose entry at each
            reset is taken; None for zero.

    Returns:
        The output in the form of the input, its last dimension ``directions * hidden_size``, and the final state
        ``h_n``, shaped like ``hx``.

    Raises:
        ValueError: ``nonlinearity`` is unknown; ``input`` has a wrong rank, or a dtype other than the weights;
            ``lengths`` are of a wrong shape, out of range on the CPU, or given with a PackedSequence; ``resets`` or
            ``reset_states`` have a wrong shape or device, or there are ``reset_states`` without ``resets``.
        TypeError: ``lengths`` are not integers, ``resets`` are not bool, or ``reset_states`` have another dtype than
            ``input``.
        RuntimeError: sizes do not fit, there are no time steps, or tensors differ in dtype or device.
        NotImplementedError: there is no kernel for the dtype or device of ``input``.

    Example:
        >>> import torch
        >>> from fused_rnn import functional
        >>> weights = [torch.randn(8, 4), torch.randn(8, 8)]
        >>> output, h_n = functional.rnn(torch.randn(5, 3, 4), None, weights, nonlinearity="relu")
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """
    if nonlinearity not in MODES:
        raise ValueError(f"Unknown nonlinearity {nonlinearity!r}. Select from 'tanh' or 'relu'.")
    states = None if hx is None else (hx,)
    dropout = dropout if training else 0.0
    output, h_n = run(
        MODES[nonlinearity], input, states, weights, num_layers, bidirectional, dropout, batch_first, lengths,
        resets=resets, reset_states=None if reset_states is None else (reset_states,),
    )  # fmt: skip
    return output, h_n
