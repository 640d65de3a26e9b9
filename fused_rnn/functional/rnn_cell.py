"""The function ``rnn_cell``, which computes what the module :class:`fused_rnn.RNNCell` does."""

from torch import Tensor

from fused_rnn.functional.fx import node_of_graph
from fused_rnn.functional.recurrent import run_cell
from fused_rnn.functional.rnn import MODES


@node_of_graph
def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    reset: Tensor | None = None,
    reset_states: Tensor | None = None,
) -> Tensor:
    """Run one step of a plain recurrent network, as torch.nn.RNNCell does.

    Elman, 1990; :func:`fused_rnn.reference.rnn_cell` states the equation.

    Args:
        input: ``[batch, input_size]`` or ``[input_size]``.
        hx: the state, ``[batch, hidden_size]`` or ``[hidden_size]``; None for zero.
        weight_ih: ``[hidden_size, input_size]``.
        weight_hh: ``[hidden_size, hidden_size]``.
        bias_ih: ``[hidden_size]``, or None if ``bias_hh`` is None too.
        bias_hh: ``[hidden_size]``, or None if ``bias_ih`` is None too.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        reset: which states become ``reset_states`` before the step, such as those of environments whose episode has
            just begun: bool, ``[batch]`` or ``[]``, on any device; None for none.
        reset_states: what replaces them, shaped like ``hx``; None for zero.

    Returns:
        The new state, shaped like ``hx``.

    Raises:
        ValueError: ``input`` or ``hx`` has a wrong rank, or only one bias is given; ``reset`` or ``reset_states`` have
            a wrong shape or device, or there are ``reset_states`` without ``reset``.
        TypeError: ``reset`` is not bool, or ``reset_states`` have another dtype than ``input``.
        RuntimeError: ``nonlinearity`` is unknown, sizes do not fit, or tensors differ in dtype or device.
        NotImplementedError: there is no kernel for the dtype or device of ``input``.

    Example:
        >>> import torch
        >>> from fused_rnn import functional
        >>> functional.rnn_cell(torch.randn(3, 4), None, torch.randn(8, 4), torch.randn(8, 8)).shape
        torch.Size([3, 8])
    """
    if nonlinearity not in MODES:  # RuntimeError, as torch.nn.RNNCell raises
        raise RuntimeError(f"Unknown nonlinearity: {nonlinearity}")
    states = None if hx is None else (hx,)
    others = None if reset_states is None else (reset_states,)
    (h,) = run_cell(MODES[nonlinearity], input, states, weight_ih, weight_hh, bias_ih, bias_hh, reset, others)
    return h
