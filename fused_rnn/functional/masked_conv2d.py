"""The function ``masked_conv2d``, which computes what the module :class:`fused_rnn.MaskedConv2d` does."""

from torch import Tensor

from fused_rnn.autograd.masked_conv2d import masked_conv2d as differentiable_masked_conv2d
from fused_rnn.autograd.masked_conv2d import masked_conv2d_fused as differentiable_masked_conv2d_fused
from fused_rnn.functional import onnx_export
from fused_rnn.functional.autocast import autocast
from fused_rnn.functional.checks import check_attributes, check_epilogue, check_residual
from fused_rnn.functional.fx import node_of_graph


@node_of_graph
def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask_type: str = "A",
    data_channels: int = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve images so that no output sees a pixel that comes after its own in raster order.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.4;
    :func:`fused_rnn.reference.masked_conv2d` states the definition. The output has the size of the input. Masked
    entries of ``weight`` are never multiplied, not even with NaN, and get a gradient of exactly zero. The result is
    ``activation(conv(input) + bias) + residual``, and on the CPU it is computed while the convolution's sums are in the
    cache.

    Args:
        input: ``[batch, in_channels, height, width]`` or ``[in_channels, height, width]``.
        weight: ``[out_channels, in_channels, kernel_height, kernel_width]``, both kernel sizes odd.
        bias: ``[out_channels]``, or None for zero.
        mask_type: ``"A"``, where an output does not see its own pixel, for a first layer; ``"B"``, where it does; or,
            for the vertical stack of a Gated PixelCNN, ``"vertical_A"``, where it sees exactly the rows above its own,
            or ``"vertical_B"``, where it sees its own row, too, on both sides.
        data_channels: the number of groups into which the channels are divided, such as 3 for red, green and blue. At
            its own pixel, an output sees only the channels of earlier groups, with type B also those of its own.
            Channel ``c`` of ``C`` is in group ``floor(c * data_channels / C)``. The vertical types need 1.
        dilation: the distance between neighbouring taps, one number or two: vertical and horizontal.
        activation: what is applied to the convolution's result: ``"relu"``; ``"gated"``, which is
            :func:`fused_rnn.functional.gated_activation` with ``data_channels`` and halves the channels; or None.
        residual: what is added after the activation, in the shape of the result; None for nothing.

    Returns:
        ``[batch, out_channels, height, width]``, without ``batch`` if the input is, in the memory format in which
        torch.nn.Conv2d would return it; with ``"gated"`` of ``out_channels / 2`` channels.

    Raises:
        ValueError: ``mask_type`` is unknown or vertical with several groups, a kernel size is even, there are fewer
            channels than groups, ``activation`` is unknown, or the channels cannot be halved in each group.
        RuntimeError: ranks or sizes do not fit, or tensors differ in dtype or device.
        NotImplementedError: there is no kernel for the dtype or device of ``input``.

    Example:
        >>> import torch
        >>> from fused_rnn import functional
        >>> functional.masked_conv2d(torch.randn(2, 1, 28, 28), torch.randn(16, 1, 7, 7), mask_type="A").shape
        torch.Size([2, 16, 28, 28])
        >>> x, w = torch.randn(2, 8, 28, 28), torch.randn(16, 8, 3, 3)
        >>> functional.masked_conv2d(x, w, mask_type="B", activation="gated", residual=x).shape
        torch.Size([2, 8, 28, 28])
    """
    input, weight = autocast(input), autocast(weight)
    bias, residual = None if bias is None else autocast(bias), None if residual is None else autocast(residual)
    check_attributes(input, (), [weight] if bias is None else [weight, bias], "masked_conv2d")
    check_epilogue(input, activation, residual)
    if residual is not None:
        check_residual(input, residual)
    spacing = (dilation, dilation) if isinstance(dilation, int) else dilation
    if input.dim() == 3:
        added = None if residual is None else residual.unsqueeze(0)
        return masked_conv2d(
            input.unsqueeze(0), weight, bias, mask_type, data_channels, spacing, activation, added
        ).squeeze(0)
    if onnx_export.exports_to_onnx(input):
        return onnx_export.masked_conv2d(input, weight, bias, mask_type, data_channels, spacing, activation, residual)
    if activation is None and residual is None:
        return differentiable_masked_conv2d(input, weight, bias, mask_type, data_channels, spacing)
    return differentiable_masked_conv2d_fused(
        input, weight, bias, residual, mask_type, data_channels, spacing, activation or "none"
    )
