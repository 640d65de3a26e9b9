"""The cell ``LSTMCell``."""

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn import functional
from fused_rnn.functional.frozen import is_traced
from fused_rnn.modules.freezing import Freezable, run_frozen
from fused_rnn.modules.fx import leaf
from fused_rnn.modules.scripting import refuse_script
from fused_rnn.modules.weights import CELL_WEIGHTS, current_weights


class LSTMCell(Freezable, torch.nn.LSTMCell):
    """One step of a long short-term memory: Hochreiter and Schmidhuber, 1997, and Gers et al., 2000.

    Constructor, initialisation, state_dict, shapes and errors are those of torch.nn.LSTMCell, whose state_dict loads
    unchanged.

    Args:
        input_size: the size of each input vector.
        hidden_size: the size of the hidden state.
        bias: whether the cell has biases.
        device: the device of the weights.
        dtype: the dtype of the weights.

    Example:
        >>> import torch, fused_rnn
        >>> cell = fused_rnn.LSTMCell(4, 8)
        >>> h, c = cell(torch.randn(3, 4))
        >>> h.shape, c.shape
        (torch.Size([3, 8]), torch.Size([3, 8]))
    """

    __prepare_scriptable__ = refuse_script

    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        reset: Tensor | None = None,
        reset_states: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one step.

        Args:
            input: ``[batch, input_size]`` or ``[input_size]``.
            hx: the states h and c, each ``[batch, hidden_size]`` or ``[hidden_size]``; None for zero.
            reset: which states become ``reset_states`` before the step, such as those of environments whose episode has
                just begun: bool, ``[batch]`` or ``[]``, on any device; None for none.
            reset_states: what replaces them, shaped like ``hx``; None for zero.

        Returns:
            The new h and c, shaped like ``hx``.

        Raises:
            ValueError: ``input`` or ``hx`` has a wrong rank; ``reset`` or ``reset_states`` have a wrong shape or
                device, or there are ``reset_states`` without ``reset``.
            TypeError: ``reset`` is not bool, or ``reset_states`` have another dtype than ``input``.
            RuntimeError: sizes do not fit, or tensors differ in dtype or device.
            NotImplementedError: there is no kernel for the dtype or device of ``input``.
        """
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            node = leaf(self, LSTMCell.forward, input, hx, reset=reset, reset_states=reset_states)
            if node is not None:
                return node
        if self._frozen is not None and not is_traced():
            h, c = run_frozen(self, input, hx, resets=reset, reset_states=reset_states)
            return h, c
        weights = current_weights(self, CELL_WEIGHTS)
        return functional.lstm_cell(input, hx, *weights, reset=reset, reset_states=reset_states)
