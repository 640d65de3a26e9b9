"""The operators ``recurrent`` and ``recurrent_backward``: one layer of any cell, with all its directions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_rnn import _C
from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.checks import check_gradients, check_layer
from fused_rnn.ops.shapes import directions_of, gradient, saved_gates, saved_states

_recurrent = torch.ops.fused_rnn.recurrent.default
_recurrent_backward = torch.ops.fused_rnn.recurrent_backward.default

# Not an operator, but a call of ``recurrent`` for all layers, if nothing but inference is asked for; else it returns
# None. Its arguments, by position, are ``cell, input, states or None, weights, layers, directions, batch_first``, and
# it returns the output and the final states; see csrc/ops/plain_call.h.
plain_recurrent = _C.plain_recurrent

Outputs = tuple[Tensor, list[Tensor], Tensor, list[Tensor]]
Gradients = tuple[Tensor, list[Tensor], list[Tensor]]


def recurrent(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    save_for_backward: bool,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> Outputs:
    """Run a sequence through one recurrent layer; :func:`fused_rnn.reference.recurrent` defines the result.

    Args:
        cell: the name of the cell, one of :data:`fused_rnn.ops.cells.CELLS`.
        input: ``[time, batch, input_size]``, or ``[rows, input_size]`` if packed; or, for one step, ``[batch,
            input_size]``, and then only ``gates`` and ``history`` have the dimension ``directions``.
        states: the initial states: h, ``[directions, batch, output_size]``, where ``output_size`` is ``proj_size`` or
            ``hidden_size``, and for an LSTM c, ``[directions, batch, hidden_size]``.
        weights: for each direction ``weight_ih [gates * hidden_size, input_size]``, ``weight_hh [gates * hidden_size,
            output_size]``, then with biases ``bias_ih, bias_hh [gates * hidden_size]``, then with a projection
            ``weight_hr [proj_size, hidden_size]``.
        batch_sizes: None, or for a packed input ``[time]``, int64, on the CPU, not increasing.
        lengths: None, or for a padded input the steps of each sequence, ``[batch]``, int64, on the device of ``input``,
            0 to time, in any order.
        save_for_backward: whether to return what :func:`recurrent_backward` needs.
        resets: None, or before which steps the states are replaced, bool, ``[time, batch]`` or ``[rows]``, on the
            device of ``input``; not for one step.
        reset_states: for each state what replaces it there, shaped like it, or ``[time, ...]`` of that; empty for zero.

    Returns:
        ``output``: ``[time, batch, directions * output_size]`` or ``[rows, directions * output_size]``;
        ``final_states``: shaped like ``states``;
        ``gates``: the values that the cell saves for backward, ``[directions, rows, sums * hidden_size]``; with
        ``lengths`` the order of rows is internal;
        ``history``: for an LSTM, c after every step, ``[directions, rows, hidden_size]``, zero in the padding; for
        other cells an empty list.
        ``gates`` and ``history`` are float64 for float64 input, else float32, except that on a GPU ``gates`` have the
        dtype of the input, and so has ``history`` if there are more than 64 hidden units; and on a CPU with
        AVX512_BF16 the ``gates`` of a bfloat16 layer are bfloat16, encoded as in ``csrc/cpu/recurrent/saved_values.h``.
        They have shape ``[0]`` without ``save_for_backward``.
    """
    return _recurrent(cell, input, states, weights, batch_sizes, lengths, save_for_backward, resets, *reset_states)


def recurrent_backward(
    cell: str,
    grad_output: Tensor | None,
    grad_final_states: Sequence[Tensor | None],
    grad_history: Sequence[Tensor | None],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor | None,
    gates: Tensor,
    history: Sequence[Tensor],
    input_grad: bool,
    state_grad: bool,
    weight_grad: bool,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> Gradients:
    """Differentiate :func:`recurrent`.

    Args:
        cell: as given to :func:`recurrent`.
        grad_output: the gradient of ``output``, or None for zero.
        grad_final_states: the gradients of ``final_states``, each None for zero.
        grad_history: the gradients of ``history``, each None for zero.
        input: as given to :func:`recurrent`.
        states: as given to :func:`recurrent`.
        weights: as given to :func:`recurrent`.
        batch_sizes: as given to :func:`recurrent`.
        lengths: as given to :func:`recurrent`.
        output: as returned by :func:`recurrent`; may be None if there is a single step, which does not read it.
        gates: as returned by :func:`recurrent`.
        history: as returned by :func:`recurrent`.
        input_grad: whether the gradient of ``input`` is wanted.
        state_grad: whether the gradients of ``states`` and ``reset_states`` are wanted.
        weight_grad: whether the gradients of ``weights`` are wanted.
        resets: as given to :func:`recurrent`.
        reset_states: as given to :func:`recurrent`.

    Returns:
        The gradients of ``input``, of ``states`` followed by ``reset_states``, and of ``weights``, of their shapes.
        Gradients of ``input`` and of states that are not wanted have shape ``[0]``; for ``weights`` the list is empty.
    """
    return _recurrent_backward(
        cell, grad_output, grad_final_states, grad_history, input, states, weights, batch_sizes, lengths,
        output, gates, history, input_grad, state_grad, weight_grad, resets, *reset_states,
    )  # fmt: skip


def _given(*tensors: Tensor | None) -> list[Tensor]:
    """Return those tensors that are not None."""
    return [tensor for tensor in tensors if tensor is not None]


@torch.library.register_fake("fused_rnn::recurrent")
def _(
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
) -> Outputs:
    try:
        check_layer(cell, input, states, weights, batch_sizes, lengths, resets, _given(reset_h, reset_c))
    except (RuntimeError, ValueError, TypeError) as error:  # with the mark of csrc/ops/recurrent.cpp
        raise type(error)(f"{error} (refused by fused_rnn::recurrent)") from None
    structure = CELLS[cell]
    directions, hidden_size = directions_of(states[0]), states[-1].shape[-1]
    return (
        input.new_empty(*input.shape[:-1], directions * states[0].shape[-1]),
        [input.new_empty(state.shape) for state in states],
        saved_gates(input, directions, structure.sums * hidden_size, save_for_backward),
        [saved_states(input, directions, hidden_size, save_for_backward) for _ in states[1:]],
    )


@torch.library.register_fake("fused_rnn::recurrent_backward")
def _(
    cell: str,
    grad_output: Tensor | None,
    grad_final_states: Sequence[Tensor | None],
    grad_history: Sequence[Tensor | None],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor | None,
    gates: Tensor,
    history: Sequence[Tensor],
    input_grad: bool,
    state_grad: bool,
    weight_grad: bool,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
) -> Gradients:
    check_layer(cell, input, states, weights, batch_sizes, lengths, resets, _given(reset_h, reset_c))
    check_gradients(cell, grad_output, grad_final_states, grad_history, input, states, output, gates, history)
    return (
        gradient(input, input_grad),
        [gradient(state, state_grad) for state in (*states, *_given(reset_h, reset_c))],
        [gradient(weight, True) for weight in weights] if weight_grad else [],
    )
