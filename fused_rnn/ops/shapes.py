"""What the fake kernels of several operators share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a kernel for ``dtype`` computes, and in which it saves states for its backward pass."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def saved(input: Tensor, directions: int, size: int, save_states: bool) -> Tensor:
    """An empty tensor for the states of ``size`` that each row of each direction saves, or of shape [0] for none."""
    shape = (directions, math.prod(input.shape[:-1]), size) if save_states else (0,)
    return input.new_empty(shape, dtype=accumulation_dtype(input.dtype))


def saved_gates(input: Tensor, directions: int, hidden_size: int, save_states: bool) -> Tensor:
    """As :func:`saved` for the four gates, which a GPU keeps in the dtype of the input."""
    gates = saved(input, directions, 4 * hidden_size, save_states)
    return gates.to(input.dtype) if input.device.type == "cuda" else gates


def directions_of(state: Tensor) -> int:
    """How many directions a layer with an initial state of this shape has."""
    return 1 if state.dim() == 2 else state.size(0)


def gradient(tensor: Tensor, wanted: bool) -> Tensor:
    """An empty tensor for the gradient of ``tensor``, or of shape [0] if it is not wanted."""
    return tensor.new_empty(tensor.shape if wanted else (0,))


def gradients(tensors: Sequence[Tensor], wanted: bool) -> list[Tensor]:
    """Empty tensors for the gradients of ``tensors``, or none if they are not wanted."""
    return [gradient(tensor, wanted) for tensor in tensors] if wanted else []


def check_device(input: Tensor, *others: Tensor) -> None:
    """Refuse tensors on another device than ``input``, as the kernels do: one on meta brings all of them here."""
    for tensor in others:
        if tensor.device != input.device:
            raise RuntimeError(f"all tensors must be on the device of input, {input.device}, got {tensor.device}")
