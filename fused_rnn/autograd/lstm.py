"""The operator ``lstm`` with its gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd import Function

from fused_rnn import ops, reference
from fused_rnn.autograd.batching import Batched, vmap_layer
from fused_rnn.autograd.graph import (
    apply,
    forward_mode,
    legacy_vmap,
    needs_graph,
    reference_gradients,
    reference_outputs,
    second_gradients,
    where_needed,
)


def lstm(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, ...]:
    """Run a sequence through one LSTM layer, differentiably; see :func:`fused_rnn.ops.lstm` for the arguments.

    Returns:
        ``output``, ``h_n`` and ``c_n``, as :func:`fused_rnn.ops.lstm` returns them; with ``return_states`` also c after
        every step, as :func:`fused_rnn.reference.lstm` returns it.
    """
    if forward_mode():
        function = partial(_reference, batch_sizes, lengths)
        output, h_n, c_n, cells = reference_outputs(function, (input, h0, c0, *weights))
    elif needs_graph(input, h0, c0, *weights):
        output, h_n, c_n, _, cells = apply(LSTMFunction, batch_sizes, lengths, input, h0, c0, *weights)
    else:
        output, h_n, c_n, _, cells = ops.lstm(input, h0, c0, weights, batch_sizes, lengths, return_states)
    if not return_states:
        return output, h_n, c_n
    width = c0.size(0) * c0.size(2)
    return output, h_n, c_n, cells.transpose(0, 1).reshape(*output.shape[:-1], width).to(output.dtype)


def lstm_cell(input: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Run one step, ``[batch, size]``, differentiably; return the new h and c."""
    output, _, c_n = lstm(input, h, c, weights)
    return output, c_n


class LSTMFunction(Function):
    """:func:`fused_rnn.ops.lstm` and its gradient."""

    @staticmethod
    def forward(
        batch_sizes: Tensor | None, lengths: Tensor | None, input: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the operator's outputs, with what the backward pass needs."""
        return ops.lstm(input, h0, c0, weights, batch_sizes, lengths, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save through save_for_backward, which notices a later change in place."""
        sequence, _, _, gates, cells = output
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2], sequence, gates, cells, *inputs[2:])

    @staticmethod
    def backward(
        ctx: Any,
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        grad_c_n: Tensor | None,
        _: None,
        grad_cells: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments, None where they are not needed."""
        needed = tuple(ctx.needs_input_grad[2:])
        tensors = ctx.saved_tensors  # once: each look unpacks them, which checkpointing allows no second time
        saved, inputs = tensors[:5], tensors[5:]
        grads = (grad_output, grad_h_n, grad_c_n, grad_cells)
        if legacy_vmap(*grads):
            function = partial(_reference, *saved[:2])
            return None, None, *reference_gradients(function, inputs, needed, grads)
        backward: Any = partial(apply, LSTMBackwardFunction) if needs_graph(*grads, *inputs) else _backward
        return None, None, *where_needed(backward(needed, *saved, *grads, *inputs), needed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the outputs for all indices of the vmapped dimension."""
        return vmap_layer(LSTMFunction.apply, info.batch_size, in_dims, args, batch_sizes=0, weights=5)


class LSTMBackwardFunction(Function):
    """:func:`fused_rnn.ops.lstm_backward`; its gradient, and all further ones, are the reference's."""

    @staticmethod
    def forward(needed: tuple[bool, ...], *tensors: Any) -> tuple[Tensor, ...]:
        """Return the operator's outputs; for the arguments see :func:`_backward`."""
        return _backward(needed, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the arguments; what the forward pass has saved follows from the others."""
        needed, batch_sizes, lengths, _, _, _, *tensors = inputs
        ctx.needed = needed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, lengths, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments, None where they are not needed."""
        batch_sizes, lengths, *tensors = ctx.saved_tensors
        function = partial(_reference, batch_sizes, lengths)
        return *(None,) * 6, *second_gradients(
            function, tensors[4:], ctx.needed, tensors[:4], ctx.needs_input_grad[6:], grads[: len(ctx.needed)]
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the gradients for all indices of the vmapped dimension."""
        # Gradients of the weights are wanted for each index, and an operator adds up those of its whole batch.
        foldable = not any(args[0][3:])
        return vmap_layer(LSTMBackwardFunction.apply, info.batch_size, in_dims, args, 1, 13, foldable)


def _backward(
    needed: tuple[bool, ...],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    *weights: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of input, h0, c0 and weights; those that are not ``needed`` may be missing or empty."""
    needs_input, needs_h0, needs_c0, *needs_weights = needed
    *gradients, grad_weights = ops.lstm_backward(
        grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes, lengths,
        output, gates, cells, needs_input, needs_h0 or needs_c0, any(needs_weights),
    )  # fmt: skip
    return *gradients, *grad_weights


def _reference(
    batch_sizes: Tensor | None, lengths: Tensor | None, input: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the operator does, but for the gates: ``cells`` is ``[directions, rows, hidden_size]``."""
    if h0.dim() == 2:
        h, c = reference.lstm_cell(input, h0, c0, *weights)
        return h, h, c, c.unsqueeze(0)
    output, h_n, c_n, cells = reference.lstm(input, h0, c0, weights, batch_sizes, lengths, return_states=True)
    return output, h_n, c_n, cells.reshape(-1, c0.size(0), c0.size(2)).transpose(0, 1)
