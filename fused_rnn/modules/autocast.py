"""What torch.autocast means for the layers."""

import torch
from torch import Tensor

from fused_rnn.functional.autocast import autocast


def computed_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype in which a layer would compute ``input``: that of autocast where it is on."""
    return autocast(input.new_empty(0)).dtype
