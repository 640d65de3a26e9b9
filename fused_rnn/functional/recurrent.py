"""Runs recurrent layers of any kind: checks, default states, packed sequences, autocast and the loop over layers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_rnn import ops
from fused_rnn.autograd import CELLS, Cell, recurrent
from fused_rnn.autograd.graph import reaches_operator
from fused_rnn.functional import onnx_export
from fused_rnn.functional.autocast import autocast, autocast_enabled
from fused_rnn.functional.checks import (
    check_attributes,
    check_cell_ranks,
    check_cell_sizes,
    check_layer_input,
    check_layer_ranks,
    check_layer_states,
    check_lengths,
)
from fused_rnn.functional.resets import Replaced, replaced_in_cell, replaced_in_layers, replaced_in_packed

States = tuple[Tensor, ...]
Result = TypeVar("Result")
Sequences = TypeVar("Sequences", Tensor, PackedSequence)
REFUSAL = "refused by fused_rnn::recurrent"
"""The mark in the message of an error by which the operator refuses its arguments; see csrc/ops/recurrent.cpp."""


class Mode(NamedTuple):
    """What distinguishes one kind of recurrent network from another."""

    name: str
    """The name in error messages, which is that of torch.nn's module."""
    cell: Cell
    """The structure of its cell."""
    node: onnx_export.Node | None
    """The node that torch.onnx.export writes for it; None if ONNX has none."""
    layer: Callable[..., States]
    """Runs one layer: ``(input, states, weights, batch_sizes, lengths, return_states, resets, reset_states) -> (output,
    *states)``.

    With ``return_states`` it also returns, for each state but h, its values after every step, in the layout of the
    output. Given states of two dimensions, it runs one step, and no tensor has the dimensions time and directions.
    """
    has_operator: bool = True
    """Whether ``layer`` calls an operator, which checks its arguments, rather than the reference."""
    runs_all_layers: bool = False
    """Whether one call of ``layer`` runs all layers of a stack, each with its part of the states."""
    plain_cell: str | None = None
    """The name of the cell if ``layer`` is the operator ``recurrent`` of the weights that it is given; else None."""


def mode_of(name: str, cell: str) -> Mode:
    """Return the mode of a network that the operator ``recurrent`` computes with the cell called ``cell``."""
    return Mode(name, CELLS[cell], onnx_export.NODES.get(cell), partial(recurrent, cell), plain_cell=cell)


def _in_onnx_export(mode: Mode, input: Tensor) -> Mode:
    """Return ``mode``, or while torch.onnx.export runs the mode that writes nodes instead."""
    if not onnx_export.exports_to_onnx(input):
        return mode
    return mode._replace(layer=partial(onnx_export.recurrent, mode.node, mode.layer))


def run(
    mode: Mode,
    input: Tensor | PackedSequence,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    dropout: float,
    batch_first: bool,
    lengths: Tensor | Sequence[int] | None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] | None = None,
) -> tuple[Any, ...]:
    """Check the arguments, run all layers, and return output and final states in the form of the input.

    Args:
        mode: the kind of network.
        input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, unbatched
            ``[time, input_size]``, or packed.
        hx: the initial states, each ``[layers * directions, batch, size]``, without ``batch`` if the input is
            unbatched; None for zero.
        weights: the weights of all layers, in torch.nn's order.
        num_layers: how many layers are stacked.
        bidirectional: whether each layer also runs backwards in time.
        dropout: the probability with which values between two layers become zero; 0 outside training.
        batch_first: whether the batch comes before the time in a padded input and output.
        lengths: ``[batch]``, the steps of each sequence of a padded input, or None for all.
        return_states: whether to return the states after every step of the last layer.
        resets: before which steps the states are replaced, bool, shaped like the input without its last dimension; or
            None for none.
        reset_states: what replaces the states there, each shaped like its initial state, or ``[time, ...]`` of that;
            None for zero.

    Returns:
        The output in the form of the input, the final states of all layers, and with ``return_states`` the states after
        every step of the last layer, in the form of the input.
    """
    rows = num_layers * (2 if bidirectional else 1)
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths must be None if input is a PackedSequence, which holds its own")
        return _run_packed(mode, input, hx, weights, num_layers, rows, dropout, return_states, resets, reset_states)

    has_options = lengths is not None or resets is not None or reset_states is not None or return_states or dropout > 0
    if not has_options and input.dim() == 3:
        results = _run_plain(mode, input, hx, weights, num_layers, rows // num_layers, batch_first)
        if results is not None:
            return results
    mode = _in_onnx_export(mode, input)
    check_layer_ranks(mode.name, input, hx, packed=False)
    unbatched = input.dim() == 2
    replaced = None
    if resets is not None or reset_states is not None:
        sizes = _state_sizes(mode, weights, rows)
        replaced = replaced_in_layers(input, resets, reset_states, sizes, rows, batch_first)
    if unbatched:
        input = input.unsqueeze(1)
        hx = None if hx is None else [state.unsqueeze(1) for state in hx]
    elif batch_first:
        input = input.transpose(0, 1)
    input, hx, weights = _autocast(input, hx, weights)
    if hx is None:
        hx = _zeros(mode, input, input.size(1), weights, rows)
    if lengths is not None:
        lengths = _lengths_of(input, lengths)
    results = _checked(
        mode,
        input,
        lambda: _check_layers(mode, input, None, input.size(1), hx, weights, rows),
        lambda: _run_layers(mode, input, None, lengths, hx, weights, num_layers, dropout, return_states, replaced),
    )
    if unbatched:
        return tuple(values.squeeze(1) for values in results)
    return _map_sequences(mode, results, lambda values: values.transpose(0, 1)) if batch_first else results


def _run_packed(
    mode: Mode,
    input: PackedSequence,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    num_layers: int,
    rows: int,
    dropout: float,
    return_states: bool,
    resets: Tensor | None,
    reset_states: Sequence[Tensor] | None,
) -> tuple[Any, ...]:
    data, batch_sizes, sorted_indices, unsorted_indices = input
    if onnx_export.exports_to_onnx(data):
        onnx_export.refuse_packed()
    check_layer_ranks(mode.name, data, hx, packed=True)
    data, hx, weights = _autocast(data, hx, weights)
    # torch.jit.trace would fix a number, and what is compared with it, for all calls of the trace. Otherwise the batch
    # size is converted once, so that torch.compile sees one number; it is 0 if there are no steps.
    tracing = torch.jit.is_tracing()
    batch: Any = batch_sizes[0] if tracing else int(batch_sizes[:1].sum())
    if hx is None:
        hx = _zeros(mode, data, batch, weights, rows)
    if not tracing:
        _check_layers(mode, data, batch_sizes, batch, hx, weights, rows)
    replaced = None
    if resets is not None or reset_states is not None:
        shapes = [(rows, batch, size) for size in _state_sizes(mode, weights, rows)]
        replaced = replaced_in_packed(data, batch_sizes, sorted_indices, resets, reset_states, shapes)
    if sorted_indices is not None:
        hx = [state.index_select(1, sorted_indices) for state in hx]
    results = _run_layers(mode, data, batch_sizes, None, hx, weights, num_layers, dropout, return_states, replaced)
    if unsorted_indices is not None:
        output, *rest = results
        states = (state.index_select(1, unsorted_indices) for state in rest[: mode.cell.states])
        results = (output, *states, *rest[mode.cell.states :])
    pack = partial(
        PackedSequence, batch_sizes=batch_sizes, sorted_indices=sorted_indices, unsorted_indices=unsorted_indices
    )
    return _map_sequences(mode, results, pack)


def run_cell(
    mode: Mode,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    reset: Tensor | None = None,
    reset_states: Sequence[Tensor] | None = None,
) -> States:
    """Check the arguments, run one step, and return the new states: a layer over a sequence of one step.

    Args:
        mode: the kind of network.
        input: ``[batch, input_size]`` or ``[input_size]``.
        hx: the states, each ``[batch, hidden_size]`` or ``[hidden_size]``; None for zero.
        weight_ih: ``[gates * hidden_size, input_size]``.
        weight_hh: ``[gates * hidden_size, hidden_size]``.
        bias_ih: ``[gates * hidden_size]``, or None if ``bias_hh`` is None too.
        bias_hh: ``[gates * hidden_size]``, or None if ``bias_ih`` is None too.
        reset: ``[batch]`` or ``[]``, bool, which states are replaced before the step; None for none.
        reset_states: what replaces them, each shaped like its state; None for zero.
    """
    weights: Sequence[Tensor] = (weight_ih, weight_hh)
    if bias_ih is not None and bias_hh is not None:
        weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    elif bias_ih is not None or bias_hh is not None:
        raise ValueError("bias_ih and bias_hh must be given together")

    if reset is None and reset_states is None and input.dim() == 2:
        results = _run_plain(mode, input, hx, weights, num_layers=1, directions=1, batch_first=False)
        if results is not None:
            return results[1:]
    mode = _in_onnx_export(mode, input)
    check_cell_ranks(mode.name, input, hx)
    unbatched = input.dim() == 1
    if unbatched:
        input = input.unsqueeze(0)
        hx = None if hx is None else [state.unsqueeze(0) for state in hx]
    input, hx, weights = _autocast(input, hx, weights)
    if hx is None:
        hx = [input.new_zeros(input.size(0), weight_hh.size(-1))] * mode.cell.states
    if reset is not None or reset_states is not None:
        if not torch.jit.is_tracing():  # a comparison of sizes would fix them in the trace
            _check_cell(input, hx, weights)
        hx = replaced_in_cell(input, hx, reset, reset_states, unbatched)
    results = _checked(mode, input, partial(_check_cell, input, hx, weights), partial(mode.layer, input, hx, weights))
    states = results[1:]  # behind the output, which is h too
    return tuple(state.squeeze(0) for state in states) if unbatched else states


def _run_plain(
    mode: Mode,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    num_layers: int,
    directions: int,
    batch_first: bool,
) -> States | None:
    """Run all layers without Python, which takes longer than a small layer, if nothing but inference is asked for.

    Returns:
        The output and the final states; None if the general way must be taken, which also raises the exceptions of
        arguments that do not fit.
    """
    # torch.compile and torch.export trace the general way.
    if mode.plain_cell is None or torch.compiler.is_compiling():
        return None
    return ops.plain_recurrent(mode.plain_cell, input, hx, weights, num_layers, directions, batch_first)


def _checked(mode: Mode, input: Tensor, check: Callable[[], None], compute: Callable[[], Result]) -> Result:
    """Return ``compute()``, or raise the exception of torch.nn, which ``check()`` raises, if the arguments do not fit.

    An operator checks its arguments itself, and inference of one small step takes only microseconds, so nothing is
    checked twice: only after the operator has refused its arguments, ``check()`` is called for its exception.
    """
    if not (mode.has_operator and reaches_operator(input)):
        check()
        return compute()
    try:
        return compute()
    except (RuntimeError, ValueError) as error:
        if REFUSAL in str(error):
            check()
        raise


def _check_cell(input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    check_cell_sizes(input, hx, weights[0], weights[1].size(-1))
    check_attributes(input, hx, weights, "recurrent")


def _check_layers(
    mode: Mode,
    input: Tensor,
    batch_sizes: Tensor | None,
    batch: int,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: int,
) -> None:
    sizes = _state_sizes(mode, weights, rows)
    check_layer_input(input, batch_sizes, weights[0])
    check_layer_states(hx, [(rows, batch, size) for size in sizes])
    check_attributes(input, hx, weights, "recurrent")


def _zeros(mode: Mode, input: Tensor, batch: int, weights: Sequence[Tensor], rows: int) -> States:
    """Return the initial states that None stands for, which are zero."""
    sizes = _state_sizes(mode, weights, rows)
    zeros = input.new_zeros((rows, batch, sizes[0]))
    if mode.cell.states == 1:
        return (zeros,)
    projected = len(weights) // rows % 2 == 1
    others = input.new_zeros((rows, batch, sizes[1])) if projected else zeros
    return zeros, *(others,) * (mode.cell.states - 1)


def _lengths_of(input: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
    """Check lengths, given as a list or a tensor, and return them as an int64 tensor on the device of ``input``."""
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, dtype=None if len(lengths) else torch.int64)
    check_lengths(lengths, input)
    return lengths.to(input.device, torch.int64)


def _run_layers(
    mode: Mode,
    input: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    num_layers: int,
    dropout: float,
    return_states: bool,
    replaced: Replaced | None,
) -> tuple[Tensor, ...]:
    """Run all layers; return the output, the final states and, with ``return_states``, the last layer's history."""
    resets, reset_states = replaced or (None, ())
    if num_layers == 1 or mode.runs_all_layers:
        return mode.layer(input, hx, weights, batch_sizes, lengths, return_states, resets, reset_states)
    per_layer = len(weights) // num_layers
    finals = []
    layers_of_states = zip(*(state.chunk(num_layers, dim=-3) for state in (*hx, *reset_states)), strict=True)
    for layer, states in enumerate(layers_of_states):
        if layer > 0 and dropout > 0:
            input = torch.nn.functional.dropout(input, dropout)
        layer_weights = weights[layer * per_layer : (layer + 1) * per_layer]
        is_last = layer == num_layers - 1
        input, *rest = mode.layer(
            input, states[: len(hx)], layer_weights, batch_sizes, lengths, return_states and is_last,
            resets, states[len(hx) :],
        )  # fmt: skip
        finals.append(rest[: mode.cell.states])
    return input, *map(torch.cat, zip(*finals, strict=True)), *rest[mode.cell.states :]


def _map_sequences(mode: Mode, results: tuple[Tensor, ...], function: Callable[[Tensor], Any]) -> tuple[Any, ...]:
    """Apply ``function`` to those results of :func:`_run_layers` that have values for every step."""
    output, *rest = results
    return function(output), *rest[: mode.cell.states], *map(function, rest[mode.cell.states :])


def _state_sizes(mode: Mode, weights: Sequence[Tensor], rows: int) -> tuple[int, ...]:
    """Return the size of each state, of which h may be projected; ``rows`` is the number of layers times directions."""
    per_row = len(weights) // rows
    if len(weights) != rows * per_row or per_row not in mode.cell.weight_counts:
        raise RuntimeError(
            f"got an incorrect number of RNN parameters: {len(weights)} for {rows} layers and directions"
        )
    hidden_size = weights[0].size(0) // mode.cell.gates
    output_size = weights[per_row - 1].size(0) if per_row % 2 == 1 else hidden_size
    return output_size, *(hidden_size,) * (mode.cell.states - 1)


def _autocast(
    input: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor] | None, Sequence[Tensor]]:
    """Apply autocast to all tensors, after a single query whether it is enabled, since a call may be very short."""
    if not autocast_enabled(input.device):
        return input, hx, weights
    return autocast(input), hx and [autocast(state) for state in hx], [autocast(weight) for weight in weights]
