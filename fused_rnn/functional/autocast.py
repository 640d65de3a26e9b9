"""What torch.autocast means for the functions of this package."""

import torch
from torch import Tensor


def autocast_enabled(device: torch.device) -> bool:
    """Return whether tensors on ``device`` are to be converted."""
    # One look is enough where none is on: a call can be shorter than many looks.
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        return False
    # Not torch.amp.is_autocast_available, which torch.compile cannot trace before 2.13; only meta has no autocast.
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def autocast(tensor: Tensor) -> Tensor:
    """Convert ``tensor`` to the lower precision where autocast is on, as torch does for its own layers.

    Args:
        tensor: of any shape.

    Returns:
        The tensor in the dtype of autocast, or as it is if autocast is off, or if it is of float64 or of integers.
    """
    if not autocast_enabled(tensor.device):
        return tensor
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype(tensor.device.type)) if eligible else tensor


def computed_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype in which a layer would compute ``input``: that of autocast where it is on."""
    return autocast(input.new_empty(0)).dtype
