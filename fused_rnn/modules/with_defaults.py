"""The layer ``WithDefaults``, which gives another layer initial states and lengths where the caller gives none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn.modules.fx import leaf


class WithDefaults(torch.nn.Module):
    """A recurrent layer with constant initial states or lengths, as an ONNX node may have them.

    They hold for every call that does not give its own, so the batch must have their size.

    Args:
        layer: one of this package's recurrent layers, or a :class:`fused_rnn.modules.Reversed` around one.
        states: the initial states, each ``[layers * directions, batch, size]``: for an LSTM h and c, for other layers h
            alone; empty for zero. They become the buffers ``initial_h`` and ``initial_c``.
        lengths: the steps of each sequence, ``[batch]``; None for all of them. They become the buffer ``lengths``.

    Example:
        >>> import torch, fused_rnn
        >>> from fused_rnn.modules import WithDefaults
        >>> layer = WithDefaults(fused_rnn.GRU(4, 8), lengths=torch.tensor([5, 2]))
        >>> output, h_n = layer(torch.randn(5, 2, 4))
        >>> bool(output[2:, 1].eq(0).all())
        True
    """

    initial_h: Tensor | None
    initial_c: Tensor | None
    lengths: Tensor | None

    def __init__(self, layer: torch.nn.Module, states: Sequence[Tensor] = (), lengths: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("initial_h", states[0] if states else None)
        self.register_buffer("initial_c", states[1] if len(states) > 1 else None)
        self.register_buffer("lengths", lengths)

    def forward(
        self,
        input: Tensor,
        hx: Any = None,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        reset_states: Any = None,
    ) -> tuple[Tensor, Any]:
        """Run sequences through the layer.

        Args:
            input: padded sequences with a batch, as for the layer.
            hx: the initial state, as for the layer; None for the constant one.
            lengths: the steps of each sequence, as for the layer; None for the constant ones.
            resets: before which steps the states are replaced, as for the layer; None for no step.
            reset_states: what replaces the states there, as for the layer; None for zero.

        Returns:
            What the layer returns.
        """
        others = {"resets": resets, "reset_states": reset_states}
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            node = leaf(self, WithDefaults.forward, input, hx, lengths=lengths, **others)
            if node is not None:
                return node
        if hx is None:
            hx = self.initial_h if self.initial_c is None else (self.initial_h, self.initial_c)
        return self.layer(input, hx, lengths=self.lengths if lengths is None else lengths, **others)

    def extra_repr(self) -> str:
        """Return the constant lengths, and the shape of the constant initial state."""
        shown = {} if self.lengths is None else {"lengths": self.lengths.tolist()}
        if self.initial_h is not None:
            shown["initial_h"] = list(self.initial_h.shape)
        return ", ".join(f"{name}={value}" for name, value in shown.items())
