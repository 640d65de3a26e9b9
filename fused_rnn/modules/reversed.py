"""The layer ``Reversed``, which runs another layer backwards in time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn.functional.resets import replaced_in_layers
from fused_rnn.modules.fx import leaf


class Reversed(torch.nn.Module):
    """A recurrent layer that runs only backwards in time, as with ONNX's ``direction="reverse"``.

    Its output at each step is that of the layer after it has seen this step and all later ones, as in the second half
    of a bidirectional layer.

    Args:
        layer: one of this package's recurrent layers, with a single direction.

    Raises:
        ValueError: ``layer`` is bidirectional.

    Example:
        >>> import torch, fused_rnn
        >>> from fused_rnn.modules import Reversed
        >>> output, h_n = Reversed(fused_rnn.GRU(4, 8))(torch.randn(5, 3, 4))
        >>> torch.equal(output[0], h_n[0])
        True
    """

    def __init__(self, layer: torch.nn.RNNBase) -> None:
        super().__init__()
        if layer.bidirectional:
            raise ValueError("layer must have one direction")
        self.layer = layer

    def forward(
        self,
        input: Tensor,
        hx: Any = None,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        reset_states: Any = None,
    ) -> tuple[Tensor, Any]:
        """Run sequences through the layer, each from its end to its beginning.

        Args:
            input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, or unbatched
                ``[time, input_size]``.
            hx: the initial state, as for the layer, which precedes the last step; None for zero.
            lengths: the steps of each sequence, as for the layer; None for all of them.
            resets: the first steps of the segments that are read backwards by themselves, as for the second direction
                of a layer; None for one segment.
            reset_states: what replaces the states where a segment ends and another one follows, as for the layer, the
                entry of a step that is the first of the following one; None for zero.

        Returns:
            The output in the form of the input, and the final state, which is that after the first step.

        Raises:
            TypeError: ``input`` is no tensor, ``resets`` are not bool, or ``reset_states`` of another dtype.
            ValueError: ``resets`` or ``reset_states`` have a wrong shape or device, or there are ``reset_states``
                without ``resets``.
        """
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            options = {"lengths": lengths, "resets": resets, "reset_states": reset_states}
            node = leaf(self, Reversed.forward, input, hx, **options)
            if node is not None:
                return node
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, got {type(input).__name__}: use lengths")
        time = 1 if self.layer.batch_first and input.dim() == 3 else 0
        order = None if lengths is None else _reversed_order(input, lengths, time)
        if resets is not None or reset_states is not None:
            resets, reset_states = self._turned_resets(input, resets, reset_states, order, time)
        options = {"lengths": lengths, "resets": resets, "reset_states": reset_states}
        output, final = self.layer(_turned(input, order, time), hx, **options)
        return _turned(output, order, time), final

    def _turned_resets(
        self, input: Tensor, resets: Tensor | None, reset_states: Any, order: Tensor | None, time: int
    ) -> tuple[Tensor, Any]:
        """Return what the layer must be given: who comes from the end meets the border before step t before step t - 1.

        The states before the last step, with which the layer begins, are never replaced.
        """
        layer, is_tuple = self.layer, isinstance(reset_states, tuple)
        states = None if reset_states is None else reset_states if is_tuple else (reset_states,)
        sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)[: 2 if layer.mode == "LSTM" else 1]
        resets = replaced_in_layers(input, resets, states, sizes, layer.num_layers, layer.batch_first).resets
        resets = resets.squeeze(1) if input.dim() == 2 else resets.transpose(0, time)
        turned = _turned(resets.unsqueeze(-1), order, time).squeeze(-1)
        never = torch.zeros_like(turned.narrow(time, 0, 1))
        turned = torch.cat([never, turned.narrow(time, 0, turned.size(time) - 1)], dim=time)
        if states is None or states[0].dim() == input.dim():
            return turned, reset_states
        steps_first = None if order is None else order.transpose(0, time).unsqueeze(1).unsqueeze(-1)
        states = tuple(_turned(state, steps_first, 0).roll(1, 0) for state in states)
        return turned, states if is_tuple else states[0]


def _reversed_order(input: Tensor, lengths: Tensor | Sequence[int], time: int) -> Tensor:
    """Return which step each step of the reversed sequences is, shaped like ``input`` without its last dimension.

    Each sequence is reversed within its own steps, and its padding remains. The same order restores that of the time.
    """
    steps = torch.arange(input.size(time), device=input.device)
    ends = torch.as_tensor(lengths, device=input.device).clamp(0, input.size(time))
    if input.dim() == 3:
        steps, ends = steps.unsqueeze(1 - time), ends.unsqueeze(time)
    return torch.where(steps < ends, ends - 1 - steps, steps)


def _turned(values: Tensor, order: Tensor | None, time: int) -> Tensor:
    """Return ``values`` with the steps of each sequence in reversed order; None for those of whole sequences.

    ``order`` has the dimensions of ``values`` but for the last one, or all of them, some of size 1.
    """
    if order is None:
        return values.flip(time)
    if order.dim() < values.dim():
        order = order.unsqueeze(-1)
    # gather rather than take_along_dim, whose shapes are not dynamic in torch.export.
    return values.gather(time, order.expand_as(values))
