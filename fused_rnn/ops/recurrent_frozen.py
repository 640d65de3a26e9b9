"""The operators ``recurrent_freeze`` and ``recurrent_frozen``: weights that are packed once, and layers run with them.

They exist on the CPU, have no gradients and are not traced: what is compiled or exported calls ``recurrent``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_rnn import _C

_recurrent_freeze = torch.ops.fused_rnn.recurrent_freeze.default
_recurrent_frozen = torch.ops.fused_rnn.recurrent_frozen.default

# Not an operator, but a call of ``recurrent_frozen`` if nothing but inference is asked for; else it returns None. Its
# arguments, by position, are ``input, states or None, weights, packed, batch_first``, and it returns the output and the
# final states; see csrc/ops/plain_call.h.
plain_frozen = _C.plain_frozen

# Finds out whether packed weights are still those of a module: from ``watched, parameters, attributes, listed`` to the
# name of the first one that changed, and how, or None; see csrc/bindings.cpp.
find_change = _C.find_change


def recurrent_freeze(
    cell: str, weights: Sequence[Tensor], layers: int, directions: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Pack the weights of one or more layers as :func:`recurrent_frozen` reads them.

    Args:
        cell: the name of the cell, one of :data:`fused_rnn.ops.cells.CELLS`.
        weights: the weights of all layers, for each as :func:`fused_rnn.ops.recurrent` takes them.
        layers: how many layers there are.
        directions: 1 or 2.
        dtype: what the weight matrices are rounded to: None or their own dtype for nothing, bfloat16 for weights in
            float32, or int8, see :func:`fused_rnn.reference.quantize`, for all but float64. Biases and ``weight_hr``
            are never rounded.

    Returns:
        ``[bytes]``, uint8, which depends on the instruction set of this machine.
    """
    return _recurrent_freeze(cell, weights, layers, directions, dtype)


def recurrent_frozen(
    input: Tensor,
    states: Sequence[Tensor],
    packed: Tensor,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Run a sequence through all layers whose weights were packed.

    Args:
        input: as for :func:`fused_rnn.ops.recurrent`.
        states: as for :func:`fused_rnn.ops.recurrent`, but ``[layers * directions, batch, size]``; empty for zero.
        packed: what :func:`recurrent_freeze` returned.
        batch_sizes: as for :func:`fused_rnn.ops.recurrent`.
        lengths: as for :func:`fused_rnn.ops.recurrent`.
        return_states: whether to return the states of every step of the last layer.
        resets: as for :func:`fused_rnn.ops.recurrent`.
        reset_states: shaped like ``states``, or ``[time, ...]`` of that; empty for zero.

    Returns:
        ``output`` of the last layer; ``final_states``, shaped like ``states``; and with ``return_states``
        the ``history`` of the last layer, else an empty list. All are shaped as those of
        :func:`fused_rnn.ops.recurrent`.
    """
    return _recurrent_frozen(input, states, packed, batch_sizes, lengths, return_states, resets, *reset_states)
