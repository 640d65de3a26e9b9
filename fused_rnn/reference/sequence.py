"""The loop over time of all references, for batches that are padded, padded with lengths, or packed."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Step = tuple[Tensor, Tensor]


def time_steps(input: Tensor, batch_sizes: Tensor | None, lengths: Tensor | Sequence[int] | None) -> list[Step]:
    """Return which sequences have each time step, and in which rows of the input their values are.

    Args:
        input: ``[time, batch, ...]``, or ``[rows, ...]`` if there are ``batch_sizes``.
        batch_sizes: ``[time]``, how many sequences have each step, as in a PackedSequence; or None.
        lengths: ``[batch]``, the number of steps of each sequence, 0 to time, in any order; or None.

    Returns:
        For each step, the rows of the input with its time and batch dimensions flattened, and their sequences.
    """
    if batch_sizes is not None:
        sequences = [torch.arange(size, device=input.device) for size in batch_sizes.tolist()]
        starts = [0, *batch_sizes.cumsum(0).tolist()]
        return [(start + batch, batch) for start, batch in zip(starts, sequences, strict=False)]
    time, batch_size = input.shape[:2]
    all_sequences = torch.arange(batch_size, device=input.device)
    if lengths is None:
        return [(t * batch_size + all_sequences, all_sequences) for t in range(time)]
    ends = torch.as_tensor(lengths, device=input.device)
    return [(t * batch_size + all_sequences[ends > t], all_sequences[ends > t]) for t in range(time)]


def scan(
    cell: Callable[[Tensor, State], State], rows: Tensor, state: State, steps: Sequence[Step]
) -> tuple[State, State]:
    """Run ``cell`` over ``steps`` in their order.

    Sequences that do not have a step keep their state. Rows that belong to no step are never read, so a NaN in the
    padding reaches neither the outputs nor the gradients.

    Args:
        cell: maps the inputs of some sequences, ``[sequences, input_size]``, and their states to the new states, h
            first.
        rows: ``[rows, input_size]``.
        state: the initial states, each ``[batch, size]``, h first.
        steps: the rows and the sequences of each step.

    Returns:
        The states after every step, each ``[rows, size]``, zero in rows that belong to no step; and the final states.
    """
    history = []
    for indices, batch in steps:
        new = cell(rows.index_select(0, indices), tuple(values.index_select(0, batch) for values in state))
        state = tuple(old.index_copy(0, batch, values) for old, values in zip(state, new, strict=True))
        history.append(new)
    stepped_rows = torch.cat([indices for indices, _ in steps])
    every_state = tuple(
        rows.new_zeros(len(rows), values[0].shape[-1]).index_copy(0, stepped_rows, torch.cat(values))
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
        The states after every step, each ``[time, batch, directions * size]`` or ``[rows, directions * size]``, h
        first; and the final states, each ``[directions, batch, size]``.
    """
    directions = len(state[0])
    per_direction = len(weights) // directions
    steps = time_steps(input, batch_sizes, lengths)
    rows = input.flatten(0, -2)
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
