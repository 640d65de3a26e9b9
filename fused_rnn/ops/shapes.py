"""Shapes and dtypes of results, for the fake kernels of the recurrent operators."""

import math

import torch
from torch import Tensor

from fused_rnn import _C

_MULTIPLIES_PAIRS = _C.build_info()["multiplies_pairs"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the kernels for ``dtype`` compute."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gates_dtype(input: Tensor) -> torch.dtype:
    """The dtype in which the gates are saved: that of the input on a GPU, and where a CPU multiplies in bfloat16."""
    narrow = input.device.type == "cuda" or (input.dtype == torch.bfloat16 and _MULTIPLIES_PAIRS)
    return input.dtype if narrow else accumulation_dtype(input.dtype)


def saved(input: Tensor, directions: int, size: int, save_for_backward: bool) -> Tensor:
    """An empty tensor for ``size`` saved values of each row and direction, or of shape [0] if nothing is saved."""
    shape = (directions, math.prod(input.shape[:-1]), size) if save_for_backward else (0,)
    return input.new_empty(shape, dtype=accumulation_dtype(input.dtype))


def saved_gates(input: Tensor, directions: int, size: int, save_for_backward: bool) -> Tensor:
    """The same as :func:`saved` for the gates."""
    return saved(input, directions, size, save_for_backward).to(gates_dtype(input))


def saved_states(input: Tensor, directions: int, size: int, save_for_backward: bool) -> Tensor:
    """The same for the states of every step, which on a GPU are in the dtype of the input if a layer has many units."""
    states = saved(input, directions, size, save_for_backward)
    narrow = input.device.type == "cuda" and size > _C.MOST_UNITS_IN_FLOAT32
    return states.to(input.dtype) if narrow else states


def directions_of(state: Tensor) -> int:
    """The number of directions of a layer with this initial state."""
    return 1 if state.dim() == 2 else state.size(0)


def gradient(tensor: Tensor, wanted: bool) -> Tensor:
    """An empty tensor for the gradient of ``tensor``, or of shape [0] if it is not wanted."""
    return tensor.new_empty(tensor.shape if wanted else (0,))
