"""The function ``gru_cell``, which computes what the module :class:`fused_rnn.GRUCell` does."""

from torch import Tensor

from fused_rnn.functional.fx import node_of_graph
from fused_rnn.functional.gru import MODE
from fused_rnn.functional.recurrent import run_cell


@node_of_graph
def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    reset_states: Tensor | None = None,
) -> Tensor:
    """Run one step of a GRU, as torch.nn.GRUCell does.

    Cho et al., 2014, with the reset gate after the product; :func:`fused_rnn.reference.gru_cell` states
    the equations.

    Args:
        input: ``[batch, input_size]`` or ``[input_size]``.
        hx: the state, ``[batch, hidden_size]`` or ``[hidden_size]``; None for zero.
        weight_ih: ``[3 * hidden_size, input_size]``.
        weight_hh: ``[3 * hidden_size, hidden_size]``.
        bias_ih: ``[3 * hidden_size]``, or None if ``bias_hh`` is None too.
        bias_hh: ``[3 * hidden_size]``, or None if ``bias_ih`` is None too.
        reset: which states become ``reset_states`` before the step, such as those of environments whose episode has
            just begun: bool, ``[batch]`` or ``[]``, on any device; None for none.
        reset_states: what replaces them, shaped like ``hx``; None for zero.

    Returns:
        The new state, shaped like ``hx``.

    Raises:
        ValueError: ``input`` or ``hx`` has a wrong rank, or only one bias is given; ``reset`` or ``reset_states`` have
            a wrong shape or device, or there are ``reset_states`` without ``reset``.
        TypeError: ``reset`` is not bool, or ``reset_states`` have another dtype than ``input``.
        RuntimeError: sizes do not fit, or tensors differ in dtype or device.
        NotImplementedError: there is no kernel for the dtype or device of ``input``.

    Example:
        >>> import torch
        >>> from fused_rnn import functional
        >>> h = functional.gru_cell(torch.randn(3, 4), None, torch.randn(24, 4), torch.randn(24, 8))
        >>> h.shape
        torch.Size([3, 8])
    """
    states = None if hx is None else (hx,)
    others = None if reset_states is None else (reset_states,)
    (h,) = run_cell(MODE, input, states, weight_ih, weight_hh, bias_ih, bias_hh, reset, others)
    return h
