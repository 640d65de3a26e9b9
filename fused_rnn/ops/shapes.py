"""What the fake kernels of several operators share."""

import math

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a kernel for ``dtype`` computes, and in which it saves states for its backward pass."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def saved(input: Tensor, directions: int, size: int, save_for_backward: bool) -> Tensor:
    """An empty tensor for the states of ``size`` that each row of each direction saves, or of shape [0] for none."""
    shape = (directions, math.prod(input.shape[:-1]), size) if save_for_backward else (0,)
    return input.new_empty(shape, dtype=accumulation_dtype(input.dtype))


def saved_gates(input: Tensor, directions: int, size: int, save_for_backward: bool) -> Tensor:
    """As :func:`saved`, for the gates, which a GPU keeps in the dtype of the input."""
    gates = saved(input, directions, size, save_for_backward)
    return gates.to(input.dtype) if input.device.type == "cuda" else gates


def directions_of(state: Tensor) -> int:
    """How many directions a layer with an initial state of this shape has."""
    return 1 if state.dim() == 2 else state.size(0)


def gradient(tensor: Tensor, wanted: bool) -> Tensor:
    """An empty tensor for the gradient of ``tensor``, or of shape [0] if it is not wanted."""
    return tensor.new_empty(tensor.shape if wanted else (0,))
