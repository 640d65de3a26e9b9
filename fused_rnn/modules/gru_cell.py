"""The cell ``GRUCell``."""

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn import functional
from fused_rnn.modules.fx import leaf
from fused_rnn.modules.scripting import refuse_script
from fused_rnn.modules.weights import CELL_WEIGHTS, current_weights


class GRUCell(torch.nn.GRUCell):
    """One step of a gated recurrent unit: Cho et al., 2014, with the reset gate after the recurrent product.

    Constructor, initialisation, state_dict, shapes and errors are those of torch.nn.GRUCell, whose state_dict loads
    unchanged.

    Args:
        input_size: the size of each input vector.
        hidden_size: the size of the hidden state.
        bias: whether the cell has biases.
        device: the device of the weights.
        dtype: the dtype of the weights.

    Example:
        >>> import torch, fused_rnn
        >>> cell = fused_rnn.GRUCell(4, 8)
        >>> cell(torch.randn(3, 4)).shape
        torch.Size([3, 8])
    """

    __prepare_scriptable__ = refuse_script

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step.

        Args:
            input: ``[batch, input_size]`` or ``[input_size]``.
            hx: the state, ``[batch, hidden_size]`` or ``[hidden_size]``; None for zero.

        Returns:
            The new state, shaped like ``hx``.

        Raises:
            ValueError: ``input`` or ``hx`` has a wrong rank.
            RuntimeError: sizes do not fit, or tensors differ in dtype or device.
            NotImplementedError: there is no kernel for the dtype or device of ``input``.
        """
        traced = isinstance(input, Proxy) or isinstance(hx, Proxy)
        if traced and (node := leaf(self, GRUCell.forward, input, hx)) is not None:
            return node
        return functional.gru_cell(input, hx, *current_weights(self, CELL_WEIGHTS))
