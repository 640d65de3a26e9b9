"""The function ``gated_activation``, which computes what the module :class:`fused_rnn.GatedActivation` does."""

from torch import Tensor

from fused_rnn.autograd.gated_activation import gated_activation as differentiable_gated_activation
from fused_rnn.functional.fx import node_of_graph


@node_of_graph
def gated_activation(input: Tensor, data_channels: int = 1) -> Tensor:
    """Multiply the hyperbolic tangent of one half of the channels by the sigmoid of the other half.

    Van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NeurIPS 2016, equation 2:
    ``y = tanh(a) * sigmoid(b)``. The channels are halved within each group, so the result has the layout of groups that
    :func:`fused_rnn.functional.masked_conv2d` expects: the first half of a group's channels is ``a``, the second
    half ``b``.

    Args:
        input: ``[batch, 2 * channels, height, width]``.
        data_channels: the number of groups into which the channels are divided, as in masked convolution.

    Returns:
        ``[batch, channels, height, width]``.

    Raises:
        ValueError: ``input`` is not 4-D, or its channels cannot be divided into ``data_channels`` groups of two halves.

    Example:
        >>> import torch
        >>> from fused_rnn import functional
        >>> a, b = torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5)
        >>> y = functional.gated_activation(torch.cat([a, b], 1))
        >>> torch.allclose(y, a.tanh() * b.sigmoid(), atol=1e-6)
        True
    """
    if input.dim() != 4:
        raise ValueError(f"input must have 4 dimensions, [batch, channels, height, width], got {input.dim()}")
    if data_channels < 1 or input.size(1) % (2 * data_channels) != 0:
        raise ValueError(
            f"the channels of input must be a multiple of 2 * data_channels, got {input.size(1)} channels and "
            f"data_channels={data_channels}"
        )
    return differentiable_gated_activation(input, data_channels)
