"""The loop over time of all references, for batches that are padded, padded with lengths, or packed."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Step = tuple[Tensor, Tensor]
Reset = tuple[Tensor, State]
"""Which sequences of a step have their states replaced before it, and the states, ``[batch, size]``, that do so."""


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


def step_resets(
    resets: Tensor, reset_states: Sequence[Tensor], state: State, steps: Sequence[Step], direction: int
) -> list[Reset]:
    """Return what is replaced before each step of a direction, in the order of ``steps``.

    A reset at step t is a border between the steps t - 1 and t, which neither direction carries its states across: the
    first one replaces them before step t, the second one, which comes from the other side, before step t - 1.

    Args:
        resets: ``[rows]``, bool.
        reset_states: for each state what replaces it, ``[directions, batch, size]``, or for every step ``[time,
            directions, batch, size]``; empty for zero.
        state: the initial states of the direction, each ``[batch, size]``.
        steps: the rows and the sequences of each step, see :func:`time_steps`.
        direction: 0 or 1.
    """
    found = []
    for t, (_, batch) in enumerate(steps):
        at = t + direction
        # Sequences without the step behind the border end here, which is no reset.
        replaced = torch.zeros(len(state[0]), dtype=torch.bool, device=resets.device)
        if at < len(steps):
            indices, sequences = steps[at]
            replaced = replaced.index_copy(0, sequences, resets.index_select(0, indices))
        border = min(at, len(steps) - 1)
        states = [(given[border] if given.dim() == 4 else given)[direction] for given in reset_states]
        found.append((replaced[batch], tuple(states) or tuple(map(torch.zeros_like, state))))
    return found


def scan(
    cell: Callable[[Tensor, State], State],
    rows: Tensor,
    state: State,
    steps: Sequence[Step],
    resets: Sequence[Reset] | None = None,
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
        resets: for each step, what is replaced before it; None for nothing.

    Returns:
        The states after every step, each ``[rows, size]``, zero in rows that belong to no step; and the final states.
    """
    history = []
    for step, (indices, batch) in enumerate(steps):
        before = tuple(values.index_select(0, batch) for values in state)
        if resets is not None:
            replaced, replacing = resets[step]
            before = tuple(
                torch.where(replaced.unsqueeze(1), other.index_select(0, batch), values)
                for values, other in zip(before, replacing, strict=True)
            )
        new = cell(rows.index_select(0, indices), before)
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
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[State, State]:
    """Run one layer in all its directions; the second one runs backwards, from the end of each sequence.

    Args:
        cell: maps an input, the states and the ``weights`` of one direction to the new states.
        input: ``[time, batch, input_size]`` or ``[rows, input_size]``.
        state: the initial states, each ``[directions, batch, size]``.
        weights: the weights of the first direction, then those of the second.
        batch_sizes: see :func:`time_steps`.
        lengths: see :func:`time_steps`.
        resets: ``[time, batch]`` or ``[rows]``, bool, before which steps the states are replaced; None for none.
        reset_states: see :func:`step_resets`.

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
        initial = tuple(values[direction] for values in state)
        replaced = None if resets is None else step_resets(resets.flatten(), reset_states, initial, steps, direction)
        order = slice(None, None, -1 if direction else 1)
        history, final = scan(
            partial(cell, weights=weights[direction * per_direction : (direction + 1) * per_direction]),
            rows,
            initial,
            steps[order],
            replaced and replaced[order],
        )
        histories.append(history)
        finals.append(final)
    joined = [torch.cat(values, dim=1) for values in zip(*histories, strict=True)]
    every_state = tuple(values.reshape(*input.shape[:-1], values.shape[1]) for values in joined)
    return every_state, tuple(map(torch.stack, zip(*finals, strict=True)))
