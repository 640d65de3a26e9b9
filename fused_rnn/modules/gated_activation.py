"""The layer ``GatedActivation``."""

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn import functional
from fused_rnn.modules.fx import leaf
from fused_rnn.modules.scripting import refuse_script


class GatedActivation(torch.nn.Module):
    """The gated activation of PixelCNN: the hyperbolic tangent of one half of the channels, times the other's sigmoid.

    Van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NeurIPS 2016, equation 2. The channels
    are halved within each group of colours, so that the result has the layout of groups of
    :class:`fused_rnn.MaskedConv2d`.

    Args:
        data_channels: the number of groups into which the channels are divided, such as 3 for red, green and blue.

    Raises:
        ValueError: ``data_channels`` is not positive.

    Example:
        >>> import torch, fused_rnn
        >>> layer = fused_rnn.MaskedConv2d(3, 24, 5, mask_type="A", data_channels=3)
        >>> fused_rnn.GatedActivation(data_channels=3)(layer(torch.randn(2, 3, 16, 16))).shape
        torch.Size([2, 12, 16, 16])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(self, data_channels: int = 1) -> None:
        if data_channels < 1:
            raise ValueError(f"data_channels must be positive, got {data_channels}")
        super().__init__()
        self.data_channels = data_channels

    def forward(self, input: Tensor) -> Tensor:
        """Apply the gate.

        Args:
            input: ``[batch, 2 * channels, height, width]``, in each group first the ``channels / data_channels``
                arguments of the hyperbolic tangent and then as many arguments of the sigmoid.

        Returns:
            ``[batch, channels, height, width]``.

        Raises:
            ValueError: ``input`` is not 4-D, or its channels cannot be divided into groups of two halves.
        """
        if isinstance(input, Proxy) and (node := leaf(self, GatedActivation.forward, input)) is not None:
            return node
        return functional.gated_activation(input, self.data_channels)

    def extra_repr(self) -> str:
        """Return the number of groups, if there are several."""
        return "" if self.data_channels == 1 else f"data_channels={self.data_channels}"
