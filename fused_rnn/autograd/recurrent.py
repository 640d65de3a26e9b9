"""The operator ``recurrent`` with its gradients, for every cell."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd import Function

from fused_rnn import ops, reference
from fused_rnn.autograd.batching import Batched, vmap_layer
from fused_rnn.autograd.graph import (
    apply,
    calls_reference,
    legacy_vmap,
    needs_graph,
    reference_gradients,
    reference_outputs,
    second_gradients,
    where_needed,
)

STATES = {name: cell.states for name, cell in ops.CELLS.items()}
"""How many states each cell has, as a dictionary of numbers, which torch.compile can trace."""


def recurrent(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """Run a sequence through one layer, differentiably; see :func:`fused_rnn.ops.recurrent` for the arguments.

    Returns:
        ``output`` and the final states, as :func:`fused_rnn.ops.recurrent` returns them; with ``return_states`` also,
        for each state but h, its values after every step, in the layout of the output.
    """
    count = STATES[cell]
    history: Sequence[Tensor]
    if calls_reference():
        function = partial(_reference, cell, bool(reset_states), batch_sizes, lengths, resets)
        output, *rest = reference_outputs(function, (input, *states, *reset_states, *weights))
        finals, history = rest[:count], rest[count:]
    elif needs_graph(input, *states, *reset_states, *weights):
        given = (cell, bool(reset_states), batch_sizes, lengths, resets)
        output, *rest = apply(RecurrentFunction, *given, input, *states, *reset_states, *weights)
        finals, _, history = rest[:count], rest[count], rest[count + 1 :]
    else:
        output, finals, _, history = ops.recurrent(
            cell, input, states, weights, batch_sizes, lengths, return_states, resets, reset_states
        )
    if not return_states:
        return output, *finals
    return output, *finals, *(like_output(values, output) for values in history)


def like_output(history: Tensor, output: Tensor) -> Tensor:
    """Return a history, ``[directions, rows, size]``, in the layout and dtype of the output."""
    width = history.size(0) * history.size(2)
    return history.transpose(0, 1).reshape(*output.shape[:-1], width).to(output.dtype)


class RecurrentFunction(Function):
    """:func:`fused_rnn.ops.recurrent` and its gradient."""

    @staticmethod
    def forward(
        cell: str,
        replaces: bool,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        input: Tensor,
        *states_and_weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the operator's outputs as one flat tuple, with the values saved for the backward pass.

        With ``replaces`` there are reset states between the initial states and the weights.
        """
        states, reset_states, weights = _split(cell, replaces, states_and_weights)
        output, finals, gates, history = ops.recurrent(
            cell, input, states, weights, batch_sizes, lengths, True, resets, reset_states
        )
        return output, *finals, gates, *history

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save tensors by save_for_backward, which detects a later modification in place."""
        cell, replaces, batch_sizes, lengths, resets, *tensors = inputs
        gates, history = output[1 + STATES[cell]], output[2 + STATES[cell] :]
        # The output of a single step is not read, so it is not saved, and the caller may change it in place.
        sequence = None if _is_one_step(tensors[0], tensors[1], batch_sizes) else output[0]
        ctx.cell, ctx.replaces = cell, replaces
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, lengths, resets, sequence, gates, *history, *tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of each argument of forward, None where it is not needed."""
        cell, replaces, count = ctx.cell, ctx.replaces, STATES[ctx.cell]
        needed = ctx.needs_input_grad[5:]
        # Read only once: each access unpacks the tensors, and checkpointing forbids unpacking them again.
        batch_sizes, lengths, resets, output, gates, *tensors = ctx.saved_tensors
        history, inputs = tensors[: count - 1], tensors[count - 1 :]
        grads = grad_outputs[: 1 + count] + grad_outputs[2 + count :]  # the gates between them have no gradient
        if legacy_vmap(*grads):
            definition = partial(_reference, cell, replaces, batch_sizes, lengths, resets)
            return *(None,) * 5, *reference_gradients(definition, inputs, needed, grads)
        if needs_graph(*grads, *inputs):
            saved = (batch_sizes, lengths, resets, output, gates, *history)
            gradients = apply(RecurrentBackwardFunction, cell, replaces, needed, *saved, *grads, *inputs)
        else:
            named = BackwardTensors.of(cell, replaces, (*history, *grads, *inputs))
            gradients = _backward(cell, needed, batch_sizes, lengths, resets, output, gates, named)
        return *(None,) * 5, *where_needed(gradients, needed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the outputs for all indices of the vmapped dimension."""
        weights = 6 + _count(*args[:2])
        return vmap_layer(RecurrentFunction.apply, info.batch_size, in_dims, args, batch_sizes=2, weights=weights)


class BackwardTensors(NamedTuple):
    """What a backward pass needs beside output and gates, by name."""

    history: Sequence[Tensor]
    grad_output: Tensor | None
    grad_finals: Sequence[Tensor | None]
    grad_history: Sequence[Tensor | None]
    input: Tensor
    states: Sequence[Tensor]
    reset_states: Sequence[Tensor]
    weights: Sequence[Tensor]

    @classmethod
    def of(cls, cell: str, replaces: bool, tensors: Sequence[Any]) -> "BackwardTensors":
        """Assign tensors to their names, from the flat list that autograd functions take."""
        count = STATES[cell]
        output = count - 1
        finals = output + 1
        history = finals + count
        input = history + count - 1
        return cls(
            tensors[:output], tensors[output], tensors[finals:history], tensors[history:input],
            tensors[input], *_split(cell, replaces, tensors[input + 1 :]),
        )  # fmt: skip

    @property
    def grads(self) -> tuple[Tensor | None, ...]:
        """The gradients of the outputs."""
        return self.grad_output, *self.grad_finals, *self.grad_history

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of the operator that have gradients."""
        return self.input, *self.states, *self.reset_states, *self.weights


class RecurrentBackwardFunction(Function):
    """:func:`fused_rnn.ops.recurrent_backward`; its gradient and all higher ones are computed by the reference."""

    @staticmethod
    def forward(
        cell: str,
        replaces: bool,
        needed: tuple[bool, ...],
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        output: Tensor | None,
        gates: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        """Return the operator's outputs; ``tensors`` are those of :class:`BackwardTensors`."""
        named = BackwardTensors.of(cell, replaces, tensors)
        return _backward(cell, needed, batch_sizes, lengths, resets, output, gates, named)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save what the reference needs, without output, gates and history, which it recomputes."""
        cell, replaces, needed, batch_sizes, lengths, resets, _output, _gates, *tensors = inputs
        named = BackwardTensors.of(cell, replaces, tensors)
        ctx.cell, ctx.replaces, ctx.needed = cell, replaces, needed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, lengths, resets, *named.grads, *named.inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of each argument of forward, None where it is not needed."""
        count = STATES[ctx.cell]
        batch_sizes, lengths, resets, *tensors = ctx.saved_tensors
        grad_outputs, inputs = tensors[: 2 * count], tensors[2 * count :]
        # The arguments before the tensors have no gradient.
        before = len(ctx.needs_input_grad) - len(tensors)
        function = partial(_reference, ctx.cell, ctx.replaces, batch_sizes, lengths, resets)
        return *(None,) * before, *second_gradients(
            function, inputs, ctx.needed, grad_outputs, ctx.needs_input_grad[before:], grads[: len(ctx.needed)]
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the gradients for all indices of the vmapped dimension."""
        cell, replaces, needed, *_ = args
        states = _count(cell, replaces)
        # Each index has its own weight gradients, but one call of the operator sums them over its whole batch.
        foldable = not any(needed[1 + states :])
        weights = len(args) - (len(needed) - 1 - states)
        function = RecurrentBackwardFunction.apply
        return vmap_layer(function, info.batch_size, in_dims, args, batch_sizes=3, weights=weights, foldable=foldable)


def _count(cell: str, replaces: bool) -> int:
    """Return how many initial and reset states a layer is given."""
    return STATES[cell] * (2 if replaces else 1)


def _split(
    cell: str, replaces: bool, tensors: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Return the initial states, the reset states and the weights, which follow each other in ``tensors``."""
    states, all_states = STATES[cell], _count(cell, replaces)
    return tensors[:states], tensors[states:all_states], tensors[all_states:]


def _is_one_step(input: Tensor, h0: Tensor, batch_sizes: Tensor | None) -> bool:
    """Return whether a layer has a single step; ``input`` and ``h0`` are as in :func:`fused_rnn.ops.recurrent`."""
    return h0.dim() == 2 or (input if batch_sizes is None else batch_sizes).size(0) == 1


def _backward(
    cell: str,
    needed: Sequence[bool],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor | None,
    gates: Tensor,
    named: BackwardTensors,
) -> tuple[Tensor, ...]:
    """Return the gradients of input, states, reset states and weights.

    A gradient that is not ``needed`` may be missing or empty.
    """
    states = _count(cell, bool(named.reset_states))
    grad_input, grad_states, grad_weights = ops.recurrent_backward(
        cell, named.grad_output, named.grad_finals, named.grad_history, named.input, named.states, named.weights,
        batch_sizes, lengths, output, gates, named.history,
        needed[0], any(needed[1 : 1 + states]), any(needed[1 + states :]), resets, named.reset_states,
    )  # fmt: skip
    return grad_input, *grad_states, *grad_weights


def _reference(
    cell: str,
    replaces: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    input: Tensor,
    *states_and_weights: Tensor,
) -> tuple[Tensor, ...]:
    """Return the operator's outputs without the gates, as one flat tuple, computed by the reference."""
    states, reset_states, weights = _split(cell, replaces, states_and_weights)
    if states[0].dim() == 2:
        new = reference.CELLS[cell](input, tuple(states), weights)
        return new[0], *new, *(values.unsqueeze(0) for values in new[1:])
    (output, *state_sequences), finals = reference.recurrent(
        cell, input, states, weights, batch_sizes, lengths, resets, reset_states
    )
    directions = states[0].size(0)
    history = (
        values.reshape(-1, directions, values.size(-1) // directions).transpose(0, 1) for values in state_sequences
    )
    return output, *finals, *history
