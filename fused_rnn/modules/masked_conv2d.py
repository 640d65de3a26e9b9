"""The layer ``MaskedConv2d``."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn import functional
from fused_rnn.modules.fx import leaf
from fused_rnn.modules.masked_weight import check_arguments, check_channels, check_gate
from fused_rnn.modules.scripting import refuse_script
from fused_rnn.modules.stepping import PixelState, Stepping
from fused_rnn.reference.masked_conv2d import check_mask_type, identify, mask


class MaskedConv2d(Stepping, torch.nn.Conv2d):
    """A convolution in which no output sees a pixel that comes after its own in raster order.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.4. The output
    has the size of the input. The weight has the shape of torch.nn.Conv2d's, whose state_dict loads unchanged, and so
    do those of other masked convolutions, which have a buffer ``mask``, if that is the mask of this layer.

    Masked entries of the weight are never used, and their gradient is exactly zero. They are zero from the beginning,
    stay so with every optimizer of torch.optim, and are set to zero when a state_dict is loaded;
    :meth:`zero_masked_weights` does it at any time. So ``torch.nn.functional.conv2d(input, layer.weight, layer.bias,
    padding="same", dilation=layer.dilation)`` is the same as ``layer(input)`` for finite inputs. Weights are
    initialised as in torch.nn.Conv2d, but with a fan-in that counts only the active taps.

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
        activation: what is applied to the convolution's result: ``"relu"``; ``"gated"``, which is
            :class:`fused_rnn.GatedActivation` with ``data_channels`` and halves the number of channels, so that the
            layer returns ``out_channels / 2``; or None.
        dtype: the dtype of the weights.
        device: the device of the weights.

    Raises:
        ValueError: ``mask_type`` is unknown or vertical with several groups, a kernel size is even, a size is not
            positive, there are fewer channels than groups, ``activation`` is unknown, or the channels cannot be halved
            in each group.
        TypeError: it is given an argument of torch.nn.Conv2d that it does not have. The stride is always 1, the
            output has the size of the input, everything outside of the input is zero, and ``data_channels`` takes the
            place of ``groups``.

    Example:
        >>> import torch, fused_rnn
        >>> layer = fused_rnn.MaskedConv2d(3, 12, 5, mask_type="A", data_channels=3)
        >>> layer(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
        >>> layer = fused_rnn.MaskedConv2d(12, 24, 3, mask_type="B", activation="gated")
        >>> x = torch.randn(2, 12, 16, 16)
        >>> layer(x, residual=x).shape
        torch.Size([2, 12, 16, 16])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask_type: str = "A",
        data_channels: int = 1,
        *excess: Any,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
        **others: Any,
    ) -> None:
        check_arguments("MaskedConv2d", in_channels, mask_type, excess, others)
        sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        spacing = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
        check_mask_type(mask_type, data_channels)
        if len(sizes) != 2 or any(size < 1 or size % 2 == 0 for size in sizes):
            raise ValueError(f"kernel_size must be two positive odd numbers, got {sizes}")
        if len(spacing) != 2 or any(distance < 1 for distance in spacing):
            raise ValueError(f"dilation must be two positive numbers, got {spacing}")
        check_channels(in_channels, out_channels, data_channels)
        check_gate(activation, out_channels, data_channels)
        # Set before torch.nn.Conv2d's constructor, since it calls reset_parameters(), which reads them.
        self.mask_type = mask_type
        self.data_channels = data_channels
        self.activation = activation
        super().__init__(
            in_channels, out_channels, sizes, padding="same", dilation=spacing, bias=bias, dtype=dtype, device=device
        )

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve images, apply the activation, and add a residual: ``activation(conv(input) + bias) + residual``.

        Args:
            input: ``[batch, in_channels, height, width]`` or ``[in_channels, height, width]``.
            residual: in the shape of the result; None for nothing.

        Returns:
            ``[batch, out_channels, height, width]``, without ``batch`` if the input is; with ``activation="gated"`` of
            ``out_channels / 2`` channels.

        Raises:
            RuntimeError: ranks or sizes do not fit, or dtype or device differ from the weight's.
            NotImplementedError: there is no kernel for the dtype or device of ``input``.
        """
        if isinstance(input, Proxy) and (node := leaf(self, MaskedConv2d.forward, input, residual)) is not None:
            return node
        # A subclass may override this method with the arguments that torch.nn gives it.
        added = () if residual is None else (residual,)
        return self._conv_forward(input, self.weight, self.bias, *added)

    def init_state(self, batch: int, height: int, width: int) -> PixelState:
        """Return the state before the first pixel, from which :meth:`step` goes on pixel by pixel.

        The state keeps the rows that the layer reads again. It has packed the weights, so that later changes of them
        have no effect on it.

        Args:
            batch: the number of images.
            height: their height.
            width: their width.

        Returns:
            The state.

        Raises:
            ValueError: a size is not positive, or the layer cannot step by itself: with type A and several groups of
                channels, or with type vertical_B.
            NotImplementedError: the weights are not float32 or float64, or not on the CPU.

        Example:
            >>> import torch, fused_rnn
            >>> layer, images = fused_rnn.MaskedConv2d(1, 8, 3, "B"), torch.randn(2, 1, 4, 4)
            >>> state = layer.init_state(2, 4, 4)
            >>> pixels = [layer.step(images[:, :, row, column], state) for row in range(4) for column in range(4)]
            >>> torch.equal(torch.stack(pixels, 2).view(2, 8, 4, 4), layer(images))
            True
        """
        down, across = self.dilation
        return self._state(self.weight, (down, across), batch, height, width)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        """Convolve with another weight, as subclasses of torch.nn.Conv2d do."""
        down, across = self.dilation
        return functional.masked_conv2d(
            input, weight, bias, self.mask_type, self.data_channels, (down, across), self.activation, residual
        )

    def _active_taps(self) -> int:
        height, width = self.kernel_size
        return {
            "A": height * width // 2 + (self.data_channels > 1),
            "B": height * width // 2 + 1,
            "vertical_A": height // 2 * width,
            "vertical_B": (height // 2 + 1) * width,
        }[self.mask_type]

    def _make_mask(self, device: torch.device) -> Tensor:
        height, width = self.kernel_size
        return mask(self.out_channels, self.in_channels, (height, width), self.mask_type, self.data_channels, device)

    def _identify(self, mask: Tensor) -> tuple[str, int] | None:
        return identify(mask)
