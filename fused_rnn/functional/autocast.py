"""Support of torch.autocast in the functions of this package."""

import torch
from torch import Tensor


def autocast_enabled(device: torch.device) -> bool:
    """Return whether autocast is enabled for tensors on ``device``."""
    # The usual case is decided by a single query, since several would take longer than a small layer.
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        return False
    # Among our devices only meta has no autocast. torch.amp.is_autocast_available would tell, but torch.compile cannot
    # trace it before torch 2.13.
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def autocast(tensor: Tensor) -> Tensor:
    """Convert ``tensor`` to the lower precision if autocast is enabled, as torch does for its own layers.

    Args:
        tensor: a tensor of any shape.

    Returns:
        The tensor in the dtype of autocast; unchanged if autocast is disabled or the dtype is float64 or an integer.
    """
    if not autocast_enabled(tensor.device):
        return tensor
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype(tensor.device.type)) if eligible else tensor


def computed_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype in which a layer would compute ``input``: the dtype of autocast if it is enabled."""
    return autocast(input.new_empty(0)).dtype
