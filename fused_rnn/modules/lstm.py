"""The layer ``LSTM``."""

from collections.abc import Sequence
from typing import Any

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


class LSTM(Freezable, torch.nn.RNNBase):
    """One or more long short-term memory layers: Hochreiter and Schmidhuber, 1997; Gers et al., 2000; Sak et al., 2014.

    Constructor, initialisation, state_dict, shapes and errors are those of torch.nn.LSTM, whose state_dict loads
    unchanged.

    Args:
        input_size: the size of each input vector.
        hidden_size: the size of the hidden state.
        num_layers: how many layers are stacked.
        bias: whether the layers have biases.
        batch_first: whether padded inputs and outputs are ``[batch, time, size]`` rather than ``[time, batch, size]``.
        dropout: the probability with which values between two layers become zero when training.
        bidirectional: whether each layer also runs backwards in time.
        proj_size: the size to which the output is projected, less than ``hidden_size``; 0 for no projection.
        device: the device of the weights.
        dtype: the dtype of the weights.

    Attributes:
        weight_ih_l[k]: ``[4 * hidden_size, input_size]``, where above layer 0 ``input_size`` is
            ``directions * output_size``.
        weight_hh_l[k]: ``[4 * hidden_size, output_size]``.
        bias_ih_l[k]: ``[4 * hidden_size]``.
        bias_hh_l[k]: ``[4 * hidden_size]``.
        weight_hr_l[k]: ``[proj_size, hidden_size]``, with a projection.
            The second direction's names end in ``_reverse``. The order of the gates is i, f, g, o.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has a wrong type.

    Example:
        >>> import torch, fused_rnn
        >>> lstm = fused_rnn.LSTM(4, 8)
        >>> lstm
        LSTM(4, 8)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 4))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 8]), torch.Size([1, 3, 8]), torch.Size([1, 3, 8]))
        >>> output, _, cells = lstm(torch.randn(5, 3, 4), lengths=[5, 0, 2], return_states=True)
        >>> cells.shape
        torch.Size([5, 3, 8])
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
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )

    def forward(
        self,
        input: Sequences,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        return_states: bool = False,
        resets: Tensor | None = None,
        reset_states: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Any, ...]:
        """Run sequences through the layers.

        Args:
            input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, unbatched
                ``[time, input_size]``, or a PackedSequence, sorted or not.
            hx: the initial states h, ``[layers * directions, batch, output_size]``, and c, ``[layers * directions,
                batch, hidden_size]``, without ``batch`` if the input is unbatched; None for zero. ``output_size`` is
                ``proj_size`` or ``hidden_size``.
            lengths: the steps of each sequence of a padded input, ``[batch]``, 0 to time, in any order, on any device,
                or a list; None for all of them. Outputs past the end of a sequence are zero, its final states are those
                at its own end, where the reverse direction begins, and nothing of the padding is read.
            return_states: whether to return c after every step of the last layer too.
            resets: before which steps the states become ``reset_states``, such as the first steps of episodes in a
                rollout: bool, shaped like ``input``, or the data of a PackedSequence, without its last dimension, on
                any device; None for no step. Each segment, from one reset to the next, is computed by itself, by the
                reverse direction from the segment's end. No gradient passes a reset.
            reset_states: what replaces the states there, h and c, each shaped like ``hx``, or ``[time, ...]`` of that,
                whose entry at each reset is taken; None for zero.

        Returns:
            The output in the form of the input, its last dimension ``directions * output_size``, and the final states
            ``(h_n, c_n)``, shaped like ``hx``. With ``return_states`` also c after every step of the last layer, in the
            form of the output, of size ``directions * hidden_size``; h after every step is the output.

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
            options: dict[str, Any] = {"lengths": lengths, "return_states": return_states}
            options |= {"resets": resets, "reset_states": reset_states}
            node = leaf(self, LSTM.forward, input, hx, **options)
            if node is not None:
                return node
        if self._frozen is not None and not is_traced():
            output, h_n, c_n, *cells = run_frozen(self, input, hx, lengths, return_states, resets, reset_states)
            return output, (h_n, c_n), *cells
        return functional.lstm(
            input,
            hx,
            layer_weights(self),
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            batch_first=self.batch_first,
            lengths=lengths,
            return_states=return_states,
            resets=resets,
            reset_states=reset_states,
        )
