"""The operators ``masked_conv2d``, ``masked_conv2d_fused`` and ``masked_conv2d_backward``."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fused_rnn.ops.checks import check_epilogue, check_images, check_masked_conv2d

_masked_conv2d = torch.ops.fused_rnn.masked_conv2d.default
_masked_conv2d_fused = torch.ops.fused_rnn.masked_conv2d_fused.default
_masked_conv2d_backward = torch.ops.fused_rnn.masked_conv2d_backward.default


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
) -> Tensor:
    """Convolve images with a masked weight; :func:`fused_rnn.reference.masked_conv2d` defines the result.

    Args:
        input: ``[batch, in_channels, height, width]``.
        weight: ``[out_channels, in_channels, kernel_height, kernel_width]``; masked entries are not used.
        bias: ``[out_channels]``, or None for zero.
        mask_type: ``"A"``, ``"B"``, ``"vertical_A"`` or ``"vertical_B"``.
        data_channels: the number of groups into which the channels are divided.
        dilation: the distance between neighbouring taps, vertical and horizontal.

    Returns:
        ``[batch, out_channels, height, width]``, in channels-last memory format if ``input`` or ``weight`` has it.
    """
    return _masked_conv2d(input, weight, bias, mask_type, data_channels, dilation)


def masked_conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
    activation: str,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor]:
    """Convolve images with a masked weight, apply an activation, and add a residual.

    Args:
        input: as given to :func:`masked_conv2d`.
        weight: as given to :func:`masked_conv2d`.
        bias: as given to :func:`masked_conv2d`.
        residual: of the output's shape, added to the activation; None for zero.
        mask_type: as given to :func:`masked_conv2d`.
        data_channels: as given to :func:`masked_conv2d`.
        dilation: as given to :func:`masked_conv2d`.
        activation: ``"none"``, ``"relu"``, or ``"gated"``, which is that of :func:`fused_rnn.ops.gated_activation`.
        save_for_backward: whether to return what the gradient of the activation needs and the output does not tell.

    Returns:
        ``output``, in the shape and memory format of that of :func:`masked_conv2d`, with half the channels if gated;
        and ``sums``, what :func:`masked_conv2d` would return, with ``save_for_backward`` and a gate, or a ReLU with a
        residual; otherwise of shape ``[0]``.
    """
    return _masked_conv2d_fused(
        input, weight, bias, residual, mask_type, data_channels, dilation, activation, save_for_backward
    )


def masked_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
    input_grad: bool,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate :func:`masked_conv2d`.

    Args:
        grad_output: the gradient of the output, ``[batch, out_channels, height, width]``.
        input: as given to :func:`masked_conv2d`.
        weight: as given to :func:`masked_conv2d`.
        mask_type: as given to :func:`masked_conv2d`.
        data_channels: as given to :func:`masked_conv2d`.
        dilation: as given to :func:`masked_conv2d`.
        input_grad: whether the gradient of ``input`` is wanted.
        weight_grad: whether the gradient of ``weight`` is wanted.
        bias_grad: whether the gradient of the bias is wanted.

    Returns:
        The gradients of ``input``, of ``weight`` (zero where it is masked), and of the bias; those that are not wanted
        have shape ``[0]``.
    """
    return _masked_conv2d_backward(
        grad_output, input, weight, mask_type, data_channels, dilation, input_grad, weight_grad, bias_grad
    )


def _images(input: Tensor, weight: Tensor, channels: int) -> Tensor:
    """Empty images like ``input``, with ``channels`` channels, channels last if either tensor is."""
    formats = [suggest_memory_format(input), suggest_memory_format(weight)]
    return torch.empty(
        (input.size(0), channels, *input.shape[2:]),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch.channels_last if torch.channels_last in formats else torch.contiguous_format,
    )


@torch.library.register_fake("fused_rnn::masked_conv2d")
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, mask_type: str, data_channels: int, dilation: tuple[int, int]
) -> Tensor:
    check_masked_conv2d(input, weight, bias, data_channels, dilation)
    return _images(input, weight, weight.size(0))


@torch.library.register_fake("fused_rnn::masked_conv2d_fused")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
    activation: str,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor]:
    check_masked_conv2d(input, weight, bias, data_channels, dilation)
    channels = check_epilogue(input, weight, residual, data_channels, activation)
    keeps_sums = save_for_backward and (activation == "gated" or (activation == "relu" and residual is not None))
    sums = _images(input, weight, weight.size(0)) if keeps_sums else input.new_empty((0,))
    return _images(input, weight, channels), sums


@torch.library.register_fake("fused_rnn::masked_conv2d_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
    input_grad: bool,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_masked_conv2d(input, weight, None, data_channels, dilation)
    check_images(grad_output, "grad_output", input, weight.size(0))
    none = (0,)
    return (
        _images(input, weight, input.size(1)) if input_grad else input.new_empty(none),
        _images(weight, weight, weight.size(1)) if weight_grad else input.new_empty(none),
        input.new_empty(weight.shape[:1] if bias_grad else none),
    )
