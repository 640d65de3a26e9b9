"""The gated activation in plain PyTorch: the definition that the kernel is tested against."""

from torch import Tensor


def halves(input: Tensor, data_channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return the two halves of the channels of each group.

    Args:
        input: ``[batch, 2 * channels, height, width]``.
        data_channels: the number of groups into which the channels are divided.

    Returns:
        Two tensors ``[batch, data_channels, channels / data_channels, height, width]``, views.
    """
    grouped = input.unflatten(1, (data_channels, 2, input.size(1) // (2 * data_channels)))
    return grouped[:, :, 0], grouped[:, :, 1]


def gated_activation(input: Tensor, data_channels: int = 1) -> Tensor:
    """Multiply the hyperbolic tangent of one half of the channels by the sigmoid of the other half.

    Van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NeurIPS 2016, equation 2:
    ``y = tanh(a) * sigmoid(b)``. In each group of channels, the first half is ``a`` and the second half ``b``.

    Args:
        input: ``[batch, 2 * channels, height, width]``.
        data_channels: the number of groups into which the channels are divided, as in masked convolution.

    Returns:
        ``[batch, channels, height, width]``.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> a, b = torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5)
        >>> torch.allclose(reference.gated_activation(torch.cat([a, b], 1)), torch.tanh(a) * torch.sigmoid(b))
        True
    """
    a, b = halves(input, data_channels)
    return (a.tanh() * b.sigmoid()).flatten(1, 2)
