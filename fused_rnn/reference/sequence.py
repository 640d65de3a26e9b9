"""The loop over time that the sequence references share: padded, packed, or padded with a length for each sequence."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Step = tuple[Tensor, Tensor]


def time_steps(input: Tensor, batch_sizes: Tensor | None, lengths: Tensor | Sequence[int] | None) -> list[Step]:
    """Which sequences take part in each time step, and where their values lie.

    Args:
        input: ``[time, batch, ...]``, or ``[rows, ...]`` if there are ``batch_sizes``.
        batch_sizes: ``[time]``, how many sequences are still running at each step, as in a PackedSequence; or None.
        lengths: ``[batch]``, the number of steps of each sequence, 0 to time, in any order; or None.

    Returns:
        For each step the rows of the input, once its time and batch dimensions are one, and their sequences.
    """
    if batch_sizes is not None:
        running = [torch.arange(size, device=input.device) for size in batch_sizes.tolist()]
        starts = [0, *batch_sizes.cumsum(0).tolist()]
        return [(start + batch, batch) for start, batch in zip(starts, running, strict=False)]
    time, batch_size = input.shape[:2]
    everyone = torch.arange(batch_size, device=input.device)
    if lengths is None:
        return [(t * batch_size + everyone, everyone) for t in range(time)]
    ends = torch.as_tensor(lengths, device=input.device)
    return [(t * batch_size + everyone[ends > t], everyone[ends > t]) for t in range(time)]


def scan(
    cell: Callable[[Tensor, State], State], rows: Tensor, state: State, steps: Sequence[Step]
) -> tuple[State, State]:
    """Run ``cell`` over ``steps`` in their order.

    Sequences outside a step keep their state, and what lies in the rows of no step is never read: a NaN in the padding
    reaches neither the outputs nor the gradients.

    Args:
        cell: maps ``[running, input_size]`` and the states of those sequences to their new states, the output first.
        rows: ``[rows, input_size]``.
        state: the initial states, each ``[batch, size]``, the output first.
        steps: the rows and the sequences of each step.

    Returns:
        The states after every step, each ``[rows, size]``, zero in the rows of no step; and the final states.
    """
    history = []
    for indices, batch in steps:
        new = cell(rows.index_select(0, indices), tuple(values.index_select(0, batch) for values in state))
        state = tuple(old.index_copy(0, batch, values) for old, values in zip(state, new, strict=True))
        history.append(new)
    where = torch.cat([indices for indices, _ in steps])
    every_state = tuple(
        rows.new_zeros(len(rows), values[0].shape[-1]).index_copy(0, where, torch.cat(values))
        for values in zip(*history, strict=True)
    )
    return every_state, state


def run_directions(
    cell: Callable[..., State],
    input: Tensor,
    state: State,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | Sequence[int] | None,
) -> tuple[State, State]:
    """Run one layer in all its directions; the second one runs backwards, from the end of each sequence.

    Args:
        cell: maps an input, the states and the ``weights`` of one direction to the new states.
        input: ``[time, batch, input_size]`` or ``[rows, input_size]``.
        state: the initial states, each ``[directions, batch, size]``.
        weights: the weights of the first direction, then those of the second.
        batch_sizes: see :func:`time_steps`.
        lengths: see :func:`time_steps`.

    Returns:
        The states after every step, each ``[time, batch, directions * size]`` or ``[rows, directions * size]``, the
        output first; and the final states, each ``[directions, batch, size]``.
    """
    directions = len(state[0])
    per_direction = len(weights) // directions
    steps = time_steps(input, batch_sizes, lengths)
    rows = input.reshape(-1, input.shape[-1])
    histories, finals = [], []
    for direction in range(directions):
        history, final = scan(
            partial(cell, weights=weights[direction * per_direction : (direction + 1) * per_direction]),
            rows,
            tuple(values[direction] for values in state),
            steps[::-1] if direction else steps,
        )
        histories.append(history)
        finals.append(final)
    joined = [torch.cat(values, dim=1) for values in zip(*histories, strict=True)]
    every_state = tuple(values.reshape(*input.shape[:-1], values.shape[1]) for values in joined)
    return every_state, tuple(map(torch.stack, zip(*finals, strict=True)))
