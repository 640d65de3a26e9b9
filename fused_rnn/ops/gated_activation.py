"""The operators ``gated_activation`` and ``gated_activation_backward``."""

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fused_rnn.ops.checks import check_gated_activation, check_images

_gated_activation = torch.ops.fused_rnn.gated_activation.default
_gated_activation_backward = torch.ops.fused_rnn.gated_activation_backward.default


def gated_activation(input: Tensor, data_channels: int) -> Tensor:
    """Apply a gate; :func:`fused_rnn.reference.gated_activation` defines the result.

    Args:
        input: ``[batch, 2 * channels, height, width]``.
        data_channels: the number of groups into which the channels are divided.

    Returns:
        ``[batch, channels, height, width]``, in channels-last memory format if ``input`` has it.
    """
    return _gated_activation(input, data_channels)


def gated_activation_backward(grad_output: Tensor, input: Tensor, data_channels: int) -> Tensor:
    """Differentiate :func:`gated_activation`.

    Args:
        grad_output: the gradient of the output, ``[batch, channels, height, width]``.
        input: as given to :func:`gated_activation`.
        data_channels: as given to :func:`gated_activation`.

    Returns:
        The gradient of ``input``, in its memory format.
    """
    return _gated_activation_backward(grad_output, input, data_channels)


@torch.library.register_fake("fused_rnn::gated_activation")
def _(input: Tensor, data_channels: int) -> Tensor:
    check_gated_activation(input, data_channels)
    batch, channels, height, width = input.shape
    return torch.empty(
        (batch, channels // 2, height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=suggest_memory_format(input),
    )


@torch.library.register_fake("fused_rnn::gated_activation_backward")
def _(grad_output: Tensor, input: Tensor, data_channels: int) -> Tensor:
    check_gated_activation(input, data_channels)
    check_images(grad_output, "grad_output", input, input.size(1) // 2)
    return torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=suggest_memory_format(input))
