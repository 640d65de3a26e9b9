"""A loop over cells in Python: how the reference cell, torch.nn's cells and our own cell classes become a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.cases import RecurrentCase
from benchmarks.problem import Outputs

WEIGHTS_PER_CELL = 4  # weight_ih, weight_hh, bias_ih, bias_hh

CellFunction = Callable[..., Tensor | Outputs]
Cell = Callable[[Tensor, Outputs], Tensor | Outputs]
Network = Callable[[Tensor], Outputs]


def loop_over_function(cell: CellFunction, case: RecurrentCase, weights: Sequence[Tensor]) -> Network:
    """The network of `case` as a loop over `cell(input, *state, *weights)`.

    Args:
        cell: The step, such as `fused_rnn.reference.lstm_cell`.
        case: The sizes.
        weights: All weights in the order of torch.nn: by layer, then by direction.

    Returns:
        A function from the input `[time, batch, input_size]` to the output and the final states.
    """

    def bind(own: Sequence[Tensor]) -> Cell:
        return lambda input, state: cell(input, *state, *own)

    return partial(_run, case, [bind(own) for own in _by_cell(weights)])


def loop_over_modules(
    cell_class: Callable[[int, int], nn.Module], case: RecurrentCase, weights: Sequence[Tensor]
) -> tuple[Network, list[Tensor]]:
    """The network of `case` as a loop over modules that start with copies of `weights`.

    Args:
        cell_class: Makes a module from input_size and hidden_size, such as `torch.nn.GRUCell`.
        case: The sizes.
        weights: All weights in the order of torch.nn: by layer, then by direction. The modules take over their dtype.

    Returns:
        The network, as of `loop_over_function`, and its parameters in the order of `weights`.
    """
    cells: list[Cell] = []
    parameters: list[Tensor] = []
    for own in _by_cell(weights):
        module = cell_class(own[0].shape[1], case.hidden_size).to(own[0].dtype)
        for parameter, weight in zip(module.parameters(), own, strict=True):
            parameter.data.copy_(weight)
        cells.append(module if case.kind == "LSTM" else _with_single_state(module))
        parameters.extend(module.parameters())
    return partial(_run, case, cells), parameters


def _with_single_state(module: nn.Module) -> Cell:
    return lambda input, state: module(input, *state)


def _by_cell(weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [weights[start : start + WEIGHTS_PER_CELL] for start in range(0, len(weights), WEIGHTS_PER_CELL)]


def _run(case: RecurrentCase, cells: Sequence[Cell], input: Tensor) -> Outputs:
    """`input` is `[time, batch, input_size]`; the output is `[time, batch, directions * hidden_size]`."""
    zeros = input.new_zeros(case.batch, case.hidden_size)
    initial = (zeros, zeros) if case.kind == "LSTM" else (zeros,)
    finals: list[Outputs] = []
    layer_output = input
    for layer in range(case.num_layers):
        steps = layer_output.unbind(0)
        outputs = []
        for direction in range(case.directions):
            cell = cells[layer * case.directions + direction]
            state: Outputs = initial
            hidden = []
            for step in reversed(steps) if direction else steps:
                new = cell(step, state)
                state = new if isinstance(new, tuple) else (new,)
                hidden.append(state[0])
            outputs.append(torch.stack(hidden[::-1] if direction else hidden))
            finals.append(state)
        layer_output = outputs[0] if case.directions == 1 else torch.cat(outputs, dim=-1)
    return (layer_output, *(torch.stack(states) for states in zip(*finals, strict=True)))
