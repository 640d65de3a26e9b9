"""The GRU as first published, ``GRUResetBefore`` and ``GRUCellResetBefore``, for which there is no kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn import reference
from fused_rnn.functional.gru import MODE as GRU_MODE
from fused_rnn.functional.onnx_export import NODES
from fused_rnn.functional.recurrent import Mode, Sequences, run, run_cell
from fused_rnn.modules.fx import leaf
from fused_rnn.modules.scripting import refuse_script
from fused_rnn.modules.weights import CELL_WEIGHTS, current_weights, layer_weights


def _layer(
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    (h,) = states
    if h.dim() == 2:
        h = reference.gru_cell(input, h, *weights, reset_after=False)
        return h, h
    return reference.gru(input, h, weights, batch_sizes, lengths, False, resets, reset_states)


MODE = Mode("GRU", GRU_MODE.cell, NODES["gru_reset_before"], _layer, has_operator=False)


class GRUResetBefore(torch.nn.RNNBase):
    """A GRU whose reset gate acts before the recurrent product: Cho et al., 2014, as first published.

    Keras calls this ``reset_after=False``, ONNX ``linear_before_reset=0``. There is no kernel for it: it runs
    the code of :mod:`fused_rnn.reference`, which is slow, so that imported models at least compute the right result.
    Everything else is as in :class:`fused_rnn.GRU`, whose weights have the same names and shapes, but would give other
    results.

    Args:
        input_size: the size of each input vector.
        hidden_size: the size of the hidden state.
        num_layers: how many layers are stacked.
        bias: whether the layers have biases.
        batch_first: whether padded inputs and outputs are ``[batch, time, size]`` rather than ``[time, batch, size]``.
        dropout: the probability with which values between two layers become zero when training.
        bidirectional: whether each layer also runs backwards in time.
        device: the device of the weights.
        dtype: the dtype of the weights.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has a wrong type.

    Example:
        >>> import torch
        >>> from fused_rnn.modules import GRUResetBefore
        >>> output, h_n = GRUResetBefore(4, 8)(torch.randn(5, 3, 4))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]))
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip

    def forward(
        self,
        input: Sequences,
        hx: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        reset_states: Tensor | None = None,
    ) -> tuple[Sequences, Tensor]:
        """Run sequences through the layers; see :meth:`fused_rnn.GRU.forward` for arguments, results and errors."""
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            given = {"lengths": lengths, "resets": resets, "reset_states": reset_states}
            node = leaf(self, GRUResetBefore.forward, input, hx, **given)
            if node is not None:
                return node
        states = None if hx is None else (hx,)
        dropout = self.dropout if self.training else 0.0
        options = (self.num_layers, self.bidirectional, dropout, self.batch_first)
        others = None if reset_states is None else (reset_states,)
        output, h_n = run(
            MODE, input, states, layer_weights(self), *options, lengths, resets=resets, reset_states=others
        )
        return output, h_n


class GRUCellResetBefore(torch.nn.RNNCellBase):
    """One step of :class:`GRUResetBefore`.

    Args:
        input_size: the size of each input vector.
        hidden_size: the size of the hidden state.
        bias: whether the cell has biases.
        device: the device of the weights.
        dtype: the dtype of the weights.

    Example:
        >>> import torch
        >>> from fused_rnn.modules import GRUCellResetBefore
        >>> GRUCellResetBefore(4, 8)(torch.randn(3, 4)).shape
        torch.Size([3, 8])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        reset: Tensor | None = None,
        reset_states: Tensor | None = None,
    ) -> Tensor:
        """Run one step; see :meth:`fused_rnn.GRUCell.forward` for arguments, results and errors."""
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            node = leaf(self, GRUCellResetBefore.forward, input, hx, reset=reset, reset_states=reset_states)
            if node is not None:
                return node
        states = None if hx is None else (hx,)
        others = None if reset_states is None else (reset_states,)
        weight_ih, weight_hh, bias_ih, bias_hh = current_weights(self, CELL_WEIGHTS)
        (h,) = run_cell(MODE, input, states, weight_ih, weight_hh, bias_ih, bias_hh, reset, others)
        return h
