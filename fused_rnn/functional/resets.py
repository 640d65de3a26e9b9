"""States that are replaced between two steps, such as where an episode ends and another one begins."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_rnn.functional.autocast import autocast


class Replaced(NamedTuple):
    """Where the states of all layers are replaced, and by what."""

    resets: Tensor
    """``[time, batch]`` or ``[rows]``, bool, on the device of the input."""
    states: Sequence[Tensor]
    """For each state ``[layers * directions, batch, size]``, or ``[time, ...]`` of that; empty for zero."""


def replaced_in_layers(
    input: Tensor,
    resets: Tensor | None,
    reset_states: Sequence[Tensor] | None,
    sizes: Sequence[int],
    rows: int,
    batch_first: bool,
) -> Replaced:
    """Check the resets of a padded input, and return them as the layers take them.

    Args:
        input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, or unbatched ``[time,
            input_size]``.
        resets: bool, shaped like ``input`` without its last dimension.
        reset_states: for each state ``[rows, batch, size]``, unbatched ``[rows, size]``, or ``[time, ...]`` of that;
            None for zero.
        sizes: the size of each state.
        rows: the number of layers times directions.
        batch_first: whether the batch comes before the time in ``input`` and ``resets``.
    """
    unbatched = input.dim() == 2
    transposed = batch_first and not unbatched
    time, *batch = (input.size(1), input.size(0)) if transposed else input.shape[:-1]
    resets = _checked_resets("resets", resets, input)
    states = _checked_states(reset_states, input, [(rows, *batch, size) for size in sizes], time)
    if unbatched:
        return Replaced(resets.unsqueeze(1), [state.unsqueeze(-2) for state in states])
    return Replaced(resets.transpose(0, 1) if transposed else resets, states)


def replaced_in_packed(
    data: Tensor,
    batch_sizes: Tensor,
    sorted_indices: Tensor | None,
    resets: Tensor | None,
    reset_states: Sequence[Tensor] | None,
    shapes: Sequence[Sequence[int]],
) -> Replaced:
    """Check the resets of a PackedSequence, and return them as the layers take them.

    Args:
        data: ``[rows, input_size]``.
        batch_sizes: ``[time]``.
        sorted_indices: the order of the sequences; None if they are sorted.
        resets: ``[rows]``, bool.
        reset_states: for each state, in the order of the caller, its shape or ``[time, ...]`` of that; None for zero.
        shapes: the shape of each state.
    """
    resets = _checked_resets("resets", resets, data)
    states = _checked_states(reset_states, data, shapes, batch_sizes.size(0))
    if sorted_indices is not None:
        states = [state.index_select(-2, sorted_indices) for state in states]
    return Replaced(resets, states)


def replaced_in_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    reset: Tensor | None,
    reset_states: Sequence[Tensor] | None,
    unbatched: bool,
) -> Sequence[Tensor]:
    """Return the states before one step of a cell, with those replaced that are reset.

    Args:
        input: ``[batch, input_size]``.
        hx: the states, each ``[batch, hidden_size]``.
        reset: ``[batch]`` or, if the caller's input is unbatched, ``[]``, bool.
        reset_states: each ``[batch, hidden_size]`` or ``[hidden_size]``; None for zero.
        unbatched: whether the caller's input is unbatched, so that the batch is 1.
    """
    if unbatched:
        input, hx = input.squeeze(0), [state.squeeze(0) for state in hx]
        return [state.unsqueeze(0) for state in replaced_in_cell(input, hx, reset, reset_states, unbatched=False)]
    where = _checked_resets("reset", reset, input).unsqueeze(-1)
    others = _checked_states(reset_states, input, [state.shape for state in hx], time=None)
    if not others:
        return [state.masked_fill(where, 0) for state in hx]
    return [torch.where(where, other, state) for state, other in zip(hx, others, strict=True)]


def _checked_resets(name: str, resets: Tensor | None, input: Tensor) -> Tensor:
    """Check where states are replaced, and return it on the device of ``input``."""
    if resets is None:
        raise ValueError(f"reset_states are given without {name}")
    if not isinstance(resets, Tensor):
        raise TypeError(f"{name} must be a tensor of bool, got {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {resets.dtype}")
    # In a trace a comparison of sizes would fix them; the operator compares them when it runs.
    rows = input.shape[:-1]
    if not torch.jit.is_tracing() and resets.shape != rows:
        raise ValueError(
            f"{name} must have the shape of input but for its size, {list(rows)}, got {list(resets.shape)}"
        )
    return resets.to(input.device, non_blocking=True)  # a copy to a GPU does not wait for it


def _checked_states(
    reset_states: Sequence[Tensor] | None, input: Tensor, shapes: Sequence[Sequence[int]], time: Any
) -> list[Tensor]:
    """Check what replaces the states, and return it in the dtype of autocast; ``time`` is None for a cell."""
    if reset_states is None:
        return []
    if len(reset_states) != len(shapes):
        raise ValueError(f"reset_states must have {len(shapes)} tensors, got {len(reset_states)}")
    states = [autocast(given) for given in reset_states]
    dtype = autocast(input).dtype
    for_every_step = time is not None and states[0].dim() == len(shapes[0]) + 1
    for index, (given, shape) in enumerate(zip(states, shapes, strict=True)):
        name = "reset_states" if len(shapes) == 1 else f"reset_states[{index}]"
        expected = [time, *shape] if for_every_step else list(shape)
        if not torch.jit.is_tracing() and list(given.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {list(given.shape)}")
        if given.device != input.device:
            raise ValueError(f"{name} must be on {input.device} as input is, got {given.device}")
        if given.dtype != dtype:
            raise TypeError(f"{name} must be {dtype} as input is, got {given.dtype}")
    return states
