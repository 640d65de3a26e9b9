"""Causal convolution over time in plain PyTorch: masked convolution of an image with one row."""

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from fused_rnn.reference import masked_conv2d as two_dimensional
from fused_rnn.reference.gated_activation import gated_activation


def mask(
    out_channels: int,
    in_channels: int,
    kernel_size: int,
    mask_type: str,
    data_channels: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return which entries of a causal convolution's weight are active.

    All taps but the last one read earlier time steps and are active. The last one reads the step itself, of which
    output ``o`` sees input ``c`` as at the centre of :func:`fused_rnn.reference.mask`.

    Args:
        out_channels: the number of output channels.
        in_channels: the number of input channels.
        kernel_size: the number of taps.
        mask_type: ``"A"``, which does not see the step's own group, for a first layer; or ``"B"``, which does.
        data_channels: the number of groups into which the channels are divided.
        device: the device of the result; None for torch's default device.

    Returns:
        ``[out_channels, in_channels, kernel_size]``, boolean.

    Raises:
        ValueError: ``mask_type`` is unknown.

    Example:
        >>> from fused_rnn.reference.masked_conv1d import mask
        >>> mask(1, 1, 3, "A").int()[0, 0]
        tensor([1, 1, 0], dtype=torch.int32)
    """
    check_mask_type(mask_type)
    row = two_dimensional.mask(
        out_channels, in_channels, (1, 2 * kernel_size - 1), mask_type, data_channels, device=device
    )
    return row[:, :, 0, :kernel_size]


def check_mask_type(mask_type: str) -> None:
    """Check that there is such a mask in one dimension.

    Raises:
        ValueError: ``mask_type`` is unknown.
    """
    if mask_type not in ("A", "B"):
        raise ValueError(f"mask_type must be 'A' or 'B', got {mask_type!r}")


def masked_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask_type: str = "A",
    data_channels: int = 1,
    dilation: int = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve sequences so that no output sees a later time step.

    ``output[t] = bias + sum over k of weight[k] input[t - (kernel_size - 1 - k) dilation]`` over the active entries of
    the weight, where ``input`` is zero before its first step; see ``mask`` in this file. The result is the activation
    of that, plus the residual.

    Args:
        input: ``[batch, in_channels, time]``.
        weight: ``[out_channels, in_channels, kernel_size]``.
        bias: ``[out_channels]``, or None for zero.
        mask_type: ``"A"`` or ``"B"``.
        data_channels: the number of groups into which the channels are divided.
        dilation: the distance between neighbouring taps, in time steps.
        activation: ``"relu"``; ``"gated"``, which halves the number of channels; or None.
        residual: in the shape of the result, or None for zero.

    Returns:
        ``[batch, out_channels, time]``; ``out_channels / 2`` channels with a gate.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> reference.masked_conv1d(torch.randn(2, 3, 100), torch.randn(6, 3, 2), dilation=4).shape
        torch.Size([2, 6, 100])
    """
    out_channels, in_channels, taps = weight.shape
    active = mask(out_channels, in_channels, taps, mask_type, data_channels, weight.device)
    output = conv1d(pad(input, ((taps - 1) * dilation, 0)), weight * active, bias, dilation=dilation)
    if activation == "relu":
        output = output.relu()
    elif activation == "gated":
        output = gated_activation(output.unsqueeze(-1), data_channels).squeeze(-1)
    if residual is None:
        return output
    if residual.shape != output.shape:  # it is not broadcast
        raise RuntimeError(
            f"Expected residual of size {list(output.shape)}, but got residual of size {list(residual.shape)}"
        )
    return output + residual
