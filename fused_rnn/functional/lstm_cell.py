"""The function ``lstm_cell``, which computes what the module :class:`fused_rnn.LSTMCell` does."""

from torch import Tensor

from fused_rnn.functional.fx import node_of_graph
from fused_rnn.functional.lstm import MODE
from fused_rnn.functional.recurrent import run_cell


@node_of_graph
def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    reset_states: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one step of an LSTM, as torch.nn.LSTMCell does.

    Hochreiter and Schmidhuber, 1997, and Gers et al., 2000; :func:`fused_rnn.reference.lstm_cell` states
    the equations.

    Args:
        input: ``[batch, input_size]`` or ``[input_size]``.
        hx: the states h and c, each ``[batch, hidden_size]`` or ``[hidden_size]``; None for zero.
        weight_ih: ``[4 * hidden_size, input_size]``.
        weight_hh: ``[4 * hidden_size, hidden_size]``.
        bias_ih: ``[4 * hidden_size]``, or None if ``bias_hh`` is None too.
        bias_hh: ``[4 * hidden_size]``, or None if ``bias_ih`` is None too.
        reset: which states become ``reset_states`` before the step, such as those of environments whose episode has
            just begun: bool, ``[batch]`` or ``[]``, on any device; None for none.
        reset_states: what replaces them, shaped like ``hx``; None for zero.

    Returns:
        The new h and c, shaped like ``hx``.

    Raises:
        ValueError: ``input`` or ``hx`` has a wrong rank, or only one bias is given; ``reset`` or ``reset_states`` have
            a wrong shape or device, or there are ``reset_states`` without ``reset``.
        TypeError: ``reset`` is not bool, or ``reset_states`` have another dtype than ``input``.
        RuntimeError: sizes do not fit, or tensors differ in dtype or device.
        NotImplementedError: there is no kernel for the dtype or device of ``input``.

    Example:
        >>> import torch
        >>> from fused_rnn import functional
        >>> h, c = functional.lstm_cell(torch.randn(3, 4), None, torch.randn(32, 4), torch.randn(32, 8))
        >>> h.shape, c.shape
        (torch.Size([3, 8]), torch.Size([3, 8]))
    """
    if hx is not None and len(hx) != 2:
        raise RuntimeError("lstm_cell expects two hidden states")
    h, c = run_cell(MODE, input, hx, weight_ih, weight_hh, bias_ih, bias_hh, reset, reset_states)
    return h, c
