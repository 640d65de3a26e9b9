"""The layer ``Reversed``, which runs another layer backwards in time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

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
        self, input: Tensor, hx: Any = None, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Any]:
        """Run sequences through the layer, each from its end to its beginning.

        Args:
            input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, or unbatched
                ``[time, input_size]``.
            hx: the initial state, as for the layer, which precedes the last step; None for zero.
            lengths: the steps of each sequence, as for the layer; None for all of them.

        Returns:
            The output in the form of the input, and the final state, which is that after the first step.

        Raises:
            TypeError: ``input`` is no tensor.
        """
        traced = isinstance(input, Proxy) or isinstance(hx, Proxy)
        if traced and (node := leaf(self, Reversed.forward, input, hx, lengths=lengths)) is not None:
            return node
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, got {type(input).__name__}: use lengths")
        time = 1 if self.layer.batch_first and input.dim() == 3 else 0
        if lengths is None:
            output, final = self.layer(input.flip(time), hx)
            return output.flip(time), final
        # Each sequence is reversed within its own steps. The same order applied to the output restores the time order.
        steps = torch.arange(input.size(time), device=input.device).unsqueeze(1 - time)
        ends = torch.as_tensor(lengths, device=input.device).unsqueeze(time)
        order = torch.where(steps < ends, ends - 1 - steps, steps).unsqueeze(-1)
        # gather rather than take_along_dim, whose shapes are not dynamic in torch.export.
        output, final = self.layer(input.gather(time, order.expand_as(input)), hx, lengths=lengths)
        return output.gather(time, order.expand_as(output)), final
