"""The layer ``GRU``."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn import functional
from fused_rnn.functional.frozen import is_traced
from fused_rnn.functional.recurrent import Sequences
from fused_rnn.modules.freezing import Freezable, run_frozen
from fused_rnn.modules.fx import leaf
from fused_rnn.modules.scripting import refuse_script
from fused_rnn.modules.weights import layer_weights


class GRU(Freezable, torch.nn.RNNBase):
    """One or more gated recurrent unit layers: Cho et al., 2014, with the reset gate after the recurrent product.

    Constructor, initialisation, state_dict, shapes and errors are those of torch.nn.GRU, whose state_dict loads
    unchanged.

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

    Attributes:
        weight_ih_l[k]: ``[3 * hidden_size, input_size]``, where above layer 0 ``input_size`` is
            ``directions * hidden_size``.
        weight_hh_l[k]: ``[3 * hidden_size, hidden_size]``.
        bias_ih_l[k]: ``[3 * hidden_size]``.
        bias_hh_l[k]: ``[3 * hidden_size]``.
            The second direction's names end in ``_reverse``. The order of the gates is r, z, n.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has a wrong type.

    Example:
        >>> import torch, fused_rnn
        >>> gru = fused_rnn.GRU(4, 8)
        >>> gru
        GRU(4, 8)
        >>> output, h_n = gru(torch.randn(5, 3, 4))
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
        *,
        proj_size: None = None,
    ) -> None:
        if proj_size is not None:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        input: Sequences,
        hx: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        reset_states: Tensor | None = None,
    ) -> tuple[Sequences, Tensor]:
        """Run sequences through the layers.

        Args:
            input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, unbatched
                ``[time, input_size]``, or a PackedSequence, sorted or not.
            hx: the initial state, ``[layers * directions, batch, hidden_size]``, without ``batch`` if the input is
                unbatched; None for zero.
            lengths: the steps of each sequence of a padded input, ``[batch]``, 0 to time, in any order, on any device,
                or a list; None for all of them. Outputs past the end of a sequence are zero, its final state is the one
                at its own end, where the reverse direction begins, and nothing of the padding is read.
            resets: before which steps the state becomes ``reset_states``, such as the first steps of episodes in a
                rollout: bool, shaped like ``input``, or the data of a PackedSequence, without its last dimension, on
                any device; None for no step. Each segment, from one reset to the next, is computed by itself, by the
                reverse direction from the segment's end. No gradient passes a reset.
            reset_states: what replaces the state there, shaped like ``hx``, or ``[time, ...]`` of that, whose entry at
                each reset is taken; None for zero.

        Returns:
            The output in the form of the input, its last dimension ``directions * hidden_size``, and the final state
            ``h_n``, shaped like ``hx``.

        Raises:
            ValueError: ``input`` has a wrong rank, or a dtype other than the weights; ``lengths`` are of a wrong shape,
                out of range on the CPU, or given with a PackedSequence; ``resets`` or ``reset_states`` have a wrong
                shape or device, or there are ``reset_states`` without ``resets``.
            TypeError: ``lengths`` are not integers, ``resets`` not bool, or ``reset_states`` of another dtype than
                ``input``.
            RuntimeError: sizes do not fit, there are no time steps, or tensors differ in dtype or device.
            NotImplementedError: there is no kernel for the dtype or device of ``input``.
        """
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            options = {"lengths": lengths, "resets": resets, "reset_states": reset_states}
            node = leaf(self, GRU.forward, input, hx, **options)
            if node is not None:
                return node
        if self._frozen is not None and not is_traced():
            states, others = None if hx is None else (hx,), None if reset_states is None else (reset_states,)
            output, h_n = run_frozen(self, input, states, lengths, False, resets, others)
            return output, h_n
        return functional.gru(
            input,
            hx,
            layer_weights(self),
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            batch_first=self.batch_first,
            lengths=lengths,
            resets=resets,
            reset_states=reset_states,
        )
