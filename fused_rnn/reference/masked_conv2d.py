"""Masked convolution in plain PyTorch: the definition that the kernels are tested against."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from fused_rnn.reference.gated_activation import gated_activation

VERTICAL = ("vertical_A", "vertical_B")
MASK_TYPES = ("A", "B", *VERTICAL)


def check_mask_type(mask_type: str, data_channels: int) -> None:
    """Check that there is such a mask.

    Raises:
        ValueError: ``mask_type`` is unknown, or vertical with several groups.
    """
    if mask_type not in MASK_TYPES:
        raise ValueError(f"mask_type must be 'A', 'B', 'vertical_A' or 'vertical_B', got {mask_type!r}")
    if mask_type in VERTICAL and data_channels != 1:
        raise ValueError(
            f"data_channels must be 1 with mask_type {mask_type!r}, whose taps all see every channel, "
            f"got {data_channels}"
        )


def mask(
    out_channels: int,
    in_channels: int,
    kernel_size: tuple[int, int],
    mask_type: str,
    data_channels: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return which entries of a masked convolution's weight are active.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.4. In raster
    order the taps before the centre are active and those after it are not. At the centre, the pixel itself, it
    depends on the groups: channel ``c`` of ``C`` is in group ``g(c) = floor(c * data_channels / C)``, and output ``o``
    sees input ``c`` if ``g(c) < g(o)`` (type A) or ``g(c) <= g(o)`` (type B).

    The vertical stack of a Gated PixelCNN sees whole rows instead (van den Oord et al., "Conditional Image Generation
    with PixelCNN Decoders", NeurIPS 2016, section 2.2): with type vertical_A the taps of all rows above the centre's
    are active, with type vertical_B those of the centre's row, too.

    Args:
        out_channels: the number of output channels.
        in_channels: the number of input channels.
        kernel_size: height and width of the kernel, both odd.
        mask_type: ``"A"``, which does not see the pixel's own group, for a first layer; ``"B"``, which does; or
            ``"vertical_A"`` or ``"vertical_B"``.
        data_channels: the number of groups into which the channels are divided, such as 3 for red, green and blue; 1
            for the vertical types.
        device: the device of the result; None for torch's default device.

    Returns:
        ``[out_channels, in_channels, height, width]``, boolean.

    Raises:
        ValueError: ``mask_type`` is unknown, or vertical with several groups.

    Example:
        >>> from fused_rnn.reference.masked_conv2d import mask
        >>> mask(1, 1, (3, 3), "B").int()[0, 0]
        tensor([[1, 1, 1],
                [1, 1, 0],
                [0, 0, 0]], dtype=torch.int32)
    """
    check_mask_type(mask_type, data_channels)
    height, width = kernel_size
    tap = torch.arange(height * width, device=device).view(height, width)
    centre = height * width // 2
    if mask_type in VERTICAL:
        rows = height // 2 + (mask_type == "vertical_B")
        return (tap < rows * width).expand(out_channels, in_channels, height, width)
    out_group = torch.arange(out_channels, device=device).view(-1, 1, 1, 1) * data_channels // out_channels
    in_group = torch.arange(in_channels, device=device).view(1, -1, 1, 1) * data_channels // in_channels
    sees = in_group <= out_group if mask_type == "B" else in_group < out_group
    return (tap < centre) | ((tap == centre) & sees)


def identify(active: Tensor) -> tuple[str, int] | None:
    """Return the ``mask_type`` and ``data_channels`` for which :func:`mask` returns ``active``.

    Args:
        active: ``[out_channels, in_channels, height, width]``, boolean.

    Returns:
        The first such pair, since masks of very small kernels are the same for several types; None if there is none.

    Example:
        >>> from fused_rnn.reference.masked_conv2d import identify, mask
        >>> identify(mask(6, 3, (5, 5), "B", 3))
        ('B', 3)
    """
    out_channels, in_channels, height, width = active.shape
    if height % 2 == 0 or width % 2 == 0:
        return None
    # Outputs of different groups see different channels at the centre.
    groups = len(active[:, :, height // 2, width // 2].unique(dim=0))
    candidates = [(mask_type, 1) for mask_type in MASK_TYPES]
    if 1 < groups <= min(out_channels, in_channels):
        candidates = [("A", groups), ("B", groups)]
    for mask_type, data_channels in candidates:
        if torch.equal(
            active, mask(out_channels, in_channels, (height, width), mask_type, data_channels, active.device)
        ):
            return mask_type, data_channels
    return None


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask_type: str = "A",
    data_channels: int = 1,
    dilation: tuple[int, int] = (1, 1),
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve images so that no output sees a pixel that comes after its own in raster order.

    Van den Oord, Kalchbrenner and Kavukcuoglu, 2016; see :func:`mask`. The result is
    ``activation(conv(input) + bias) + residual``.

    Args:
        input: ``[batch, in_channels, height, width]``.
        weight: ``[out_channels, in_channels, kernel_height, kernel_width]``, both kernel sizes odd.
        bias: ``[out_channels]``, or None for zero.
        mask_type: ``"A"``, ``"B"``, ``"vertical_A"`` or ``"vertical_B"``.
        data_channels: the number of groups into which the channels are divided.
        dilation: the distance between neighbouring taps, vertical and horizontal.
        activation: ``"relu"``; ``"gated"``, the function ``gated_activation`` of this package, which halves the number
            of channels; or None.
        residual: in the shape of the result, or None for zero.

    Returns:
        ``[batch, out_channels, height, width]``; ``out_channels / 2`` channels with a gate.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> reference.masked_conv2d(torch.randn(2, 3, 8, 8), torch.randn(6, 3, 5, 5), data_channels=3).shape
        torch.Size([2, 6, 8, 8])
    """
    out_channels, in_channels, height, width = weight.shape
    active = mask(out_channels, in_channels, (height, width), mask_type, data_channels, weight.device)
    padding = (height // 2 * dilation[0], width // 2 * dilation[1])
    output = conv2d(input, weight * active, bias, padding=padding, dilation=dilation)
    if activation == "relu":
        output = output.relu()
    elif activation == "gated":
        output = gated_activation(output, data_channels)
    if residual is None:
        return output
    if residual.shape != output.shape:  # it is not broadcast
        raise RuntimeError(
            f"Expected residual of size {list(output.shape)}, but got residual of size {list(residual.shape)}"
        )
    return output + residual
