"""The operator ``gated_activation``."""

import torch
from torch import Tensor

_gated_activation = torch.ops.fused_rnn.gated_activation.default


def gated_activation(input: Tensor, data_channels: int) -> Tensor:
    """Apply a gate; :func:`fused_rnn.reference.gated_activation` defines the result.

    Args:
        input: ``[batch, 2 * channels, height, width]``.
        data_channels: the number of groups into which the channels are divided.

    Returns:
        ``[batch, channels, height, width]``, in channels-last memory format if ``input`` has it.
    """
    return _gated_activation(input, data_channels)


@torch.library.register_fake("fused_rnn::gated_activation")
def _(input: Tensor, data_channels: int) -> Tensor:
    batch, channels, height, width = input.shape
    return torch.empty(
        (batch, channels // 2, height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=torch._prims_common.suggest_memory_format(input),
    )
