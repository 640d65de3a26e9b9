"""Registers how many floating-point operations the operators take, for torch.utils.flop_counter.FlopCounterMode.

As PyTorch does for its own operators, only products are counted, a multiplication and an addition each, and a product
with a transposed matrix counts for a gradient only if this gradient is wanted. Importing this module registers the
formulas.
"""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import register_flop_formula

from fused_rnn import reference
from fused_rnn.ops.shapes import directions_of

__all__ = [
    "masked_conv2d_backward_flops",
    "masked_conv2d_flops",
    "masked_conv2d_fused_flops",
    "recurrent_backward_flops",
    "recurrent_flops",
]


def _rows(input: Tensor, lengths: Any) -> int:
    """Return how many rows of ``input`` a layer computes: with known ``lengths``, those that are not padding."""
    return prod(input.shape[:-1]) if _unknown(lengths) else int(lengths.sum())


def _sequences(state: Tensor, lengths: Any) -> int:
    """Return how many sequences have a first step."""
    return state.shape[-2] if _unknown(lengths) else int(lengths.count_nonzero())


def _unknown(lengths: Tensor | None) -> bool:
    """Whether there are no lengths, or only their shape is known."""
    return lengths is None or isinstance(lengths, FakeTensor) or lengths.is_meta


def _matrices(states: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Return the matrices of each direction: ``weight_ih``, ``weight_hh`` and, with a projection, ``weight_hr``."""
    directions = directions_of(states[0])
    each = len(weights) // directions
    return [[weight for weight in weights[d * each : (d + 1) * each] if weight.dim() == 2] for d in range(directions)]


@register_flop_formula(torch.ops.fused_rnn.recurrent, get_raw=True)
def recurrent_flops(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    save_for_backward: bool,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    *,
    out_val: Any = None,
) -> int:
    """Count those of :func:`fused_rnn.ops.recurrent`: each row is multiplied by each matrix."""
    return 2 * _rows(input, lengths) * sum(weight.numel() for weight in weights if weight.dim() == 2)


@register_flop_formula(torch.ops.fused_rnn.recurrent_backward, get_raw=True)
def recurrent_backward_flops(
    cell: str,
    grad_output: Tensor | None,
    grad_final_states: Sequence[Tensor | None],
    grad_history: Sequence[Tensor | None],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor,
    history: Sequence[Tensor],
    input_grad: bool,
    state_grad: bool,
    weight_grad: bool,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    *,
    out_val: Any = None,
) -> int:
    """Count those of :func:`fused_rnn.ops.recurrent_backward`.

    The gradients of the hidden values take the recurrent weights in every step but the first, whose hidden value is the
    initial state, and the projection in all.
    """
    rows, count = _rows(input, lengths), 0
    for weight_ih, weight_hh, *projection in _matrices(states, weights):
        projected = sum(weight.numel() for weight in projection)
        hidden_rows = rows if state_grad else rows - _sequences(states[0], lengths)
        count += rows * input_grad * weight_ih.numel() + hidden_rows * weight_hh.numel() + rows * projected
        count += rows * weight_grad * (weight_ih.numel() + weight_hh.numel() + projected)
    return 2 * count


@register_flop_formula(torch.ops.fused_rnn.masked_conv2d, get_raw=True)
def masked_conv2d_flops(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: Sequence[int],
    *,
    out_val: Any = None,
) -> int:
    """Count those of :func:`fused_rnn.ops.masked_conv2d`: each pixel is multiplied by each active weight."""
    batch, _, height, width = input.shape
    return 2 * batch * height * width * _active(*map(int, weight.shape), mask_type, data_channels)


@register_flop_formula(torch.ops.fused_rnn.masked_conv2d_fused, get_raw=True)
def masked_conv2d_fused_flops(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: Sequence[int],
    activation: str,
    save_for_backward: bool,
    *,
    out_val: Any = None,
) -> int:
    """Count those of :func:`fused_rnn.ops.masked_conv2d_fused`: those of the convolution."""
    return masked_conv2d_flops(input, weight, bias, mask_type, data_channels, dilation)


@register_flop_formula(torch.ops.fused_rnn.masked_conv2d_backward, get_raw=True)
def masked_conv2d_backward_flops(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    mask_type: str,
    data_channels: int,
    dilation: Sequence[int],
    input_grad: bool,
    weight_grad: bool,
    bias_grad: bool,
    *,
    out_val: Any = None,
) -> int:
    """Count those of :func:`fused_rnn.ops.masked_conv2d_backward`."""
    forward = masked_conv2d_flops(input, weight, None, mask_type, data_channels, dilation)
    return (input_grad + weight_grad) * forward


@cache
def _active(out_channels: int, in_channels: int, height: int, width: int, mask_type: str, data_channels: int) -> int:
    """Return how many entries of a weight are active."""
    # Numbers are needed also where a mode lets tensors have only shapes.
    with _disable_current_modes():
        active = reference.mask(out_channels, in_channels, (height, width), mask_type, data_channels)
        return int(active.sum())
