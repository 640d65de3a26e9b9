"""What torch.autocast means for the functions of this package."""

import torch
from torch import Tensor


def autocast(tensor: Tensor) -> Tensor:
    """Convert ``tensor`` to the lower precision where autocast is on, as torch does for its own layers.

    Args:
        tensor: of any shape.

    Returns:
        The tensor in the dtype of autocast, or as it is if autocast is off, or if it is of float64 or of integers.
    """
    device = tensor.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensor
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype(device)) if eligible else tensor
