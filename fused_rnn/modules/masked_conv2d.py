"""The layer ``MaskedConv2d``."""

import math
from typing import Any

import torch
from torch import Tensor

from fused_rnn import functional
from fused_rnn.reference.masked_conv2d import check_mask_type


class MaskedConv2d(torch.nn.Conv2d):
    """A convolution in which no output sees a pixel that comes after its own in raster order.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.4. The output
    has the size of the input. The weight has the shape of torch.nn.Conv2d's, whose state_dict loads unchanged;
    its masked entries are never used, and their gradient is exactly zero. Weights are initialised as in
    torch.nn.Conv2d, but with a fan-in that counts only the active taps.

    Args:
        in_channels: the number of input channels.
        out_channels: the number of output channels.
        kernel_size: height and width of the kernel, both odd; one number, or two.
        mask_type: ``"A"``, where an output does not see its own pixel, for the first layer of a model; or ``"B"``,
            where it does, for all others. The vertical stack of a Gated PixelCNN (van den Oord et al., "Conditional
            Image Generation with PixelCNN Decoders", NeurIPS 2016, section 2.2) has ``"vertical_A"``, where an output
            sees exactly the rows above its own, and ``"vertical_B"``, where it sees its own row, too, on both sides.
        data_channels: the number of groups into which the channels are divided, such as 3 for red, green and blue. At
            its own pixel, an output sees only the channels of earlier groups, with type B also those of its own.
            Channel ``c`` of ``C`` is in group ``floor(c * data_channels / C)``. The vertical types need 1, since
            their taps all see every channel.
        bias: whether the layer has a bias.
        dilation: the distance between neighbouring taps, one number or two: vertical and horizontal.
        dtype: the dtype of the weights.
        device: the device of the weights.

    Raises:
        ValueError: ``mask_type`` is unknown or vertical with several groups, a kernel size is even, a size is not
            positive, or there are fewer channels than groups.

    Example:
        >>> import torch, fused_rnn
        >>> layer = fused_rnn.MaskedConv2d(3, 12, 5, mask_type="A", data_channels=3)
        >>> layer(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask_type: str = "A",
        data_channels: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        spacing = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
        check_mask_type(mask_type, data_channels)
        if len(sizes) != 2 or any(size < 1 or size % 2 == 0 for size in sizes):
            raise ValueError(f"kernel_size must be two positive odd numbers, got {sizes}")
        if len(spacing) != 2 or any(distance < 1 for distance in spacing):
            raise ValueError(f"dilation must be two positive numbers, got {spacing}")
        if data_channels < 1 or min(in_channels, out_channels) < data_channels:
            raise ValueError(
                f"data_channels must be positive and must not exceed in_channels and out_channels, got "
                f"data_channels={data_channels}, in_channels={in_channels}, out_channels={out_channels}"
            )
        # Set before torch.nn.Conv2d's constructor, since it calls reset_parameters(), which reads them.
        self.mask_type = mask_type
        self.data_channels = data_channels
        super().__init__(
            in_channels, out_channels, sizes, padding="same", dilation=spacing, bias=bias, dtype=dtype, device=device
        )

    def reset_parameters(self) -> None:
        """Initialise weight and bias."""
        height, width = self.kernel_size
        taps = {
            "A": height * width // 2 + (self.data_channels > 1),
            "B": height * width // 2 + 1,
            "vertical_A": height // 2 * width,
            "vertical_B": (height // 2 + 1) * width,
        }[self.mask_type]
        bound = 1 / math.sqrt(max(taps, 1) * self.in_channels)
        torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve images.

        Args:
            input: ``[batch, in_channels, height, width]`` or ``[in_channels, height, width]``.

        Returns:
            ``[batch, out_channels, height, width]``, without ``batch`` if the input is.

        Raises:
            RuntimeError: ranks or sizes do not fit, or dtype or device differ from the weight's.
            NotImplementedError: there is no kernel for the dtype or device of ``input``.
        """
        down, across = self.dilation
        return functional.masked_conv2d(
            input, self.weight, self.bias, self.mask_type, self.data_channels, (down, across)
        )

    def extra_repr(self) -> str:
        """Return the arguments in the style of torch.nn.Conv2d."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, mask_type={self.mask_type!r}"
        if self.data_channels != 1:
            text += f", data_channels={self.data_channels}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        return text if self.bias is not None else f"{text}, bias=False"
