"""The operator ``gru`` with its gradients."""

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


def gru(
    input: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a sequence through one GRU layer, differentiably; see :func:`fused_rnn.ops.gru` for the arguments.

    Returns:
        ``output`` and ``h_n``, as :func:`fused_rnn.ops.gru` returns them.
    """
    if forward_mode():
        output, h_n = reference_outputs(partial(_reference, batch_sizes, lengths), (input, h0, *weights))
    elif needs_graph(input, h0, *weights):
        output, h_n, _ = apply(GRUFunction, batch_sizes, lengths, input, h0, *weights)
    else:
        output, h_n, _ = ops.gru(input, h0, weights, batch_sizes, lengths, False)
    return output, h_n


def gru_cell(input: Tensor, h: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor]:
    """Run one step, ``[batch, size]``, differentiably; return the new h."""
    return gru(input, h, weights)[:1]


class GRUFunction(Function):
    """:func:`fused_rnn.ops.gru` and its gradient."""

    @staticmethod
    def forward(
        batch_sizes: Tensor | None, lengths: Tensor | None, input: Tensor, h0: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the operator's outputs, with what the backward pass needs."""
        return ops.gru(input, h0, weights, batch_sizes, lengths, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save through save_for_backward, which notices a later change in place."""
        sequence, _, gates = output
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2], sequence, gates, *inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments, None where they are not needed."""
        needed = tuple(ctx.needs_input_grad[2:])
        tensors = ctx.saved_tensors  # once: each look unpacks them, which checkpointing allows no second time
        saved, inputs = tensors[:4], tensors[4:]
        grads = (grad_output, grad_h_n)
        if legacy_vmap(*grads):
            function = partial(_reference, *saved[:2])
            return None, None, *reference_gradients(function, inputs, needed, grads)
        backward: Any = partial(apply, GRUBackwardFunction) if needs_graph(*grads, *inputs) else _backward
        return None, None, *where_needed(backward(needed, *saved, *grads, *inputs), needed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the outputs for all indices of the vmapped dimension."""
        return vmap_layer(GRUFunction.apply, info.batch_size, in_dims, args, batch_sizes=0, weights=4)


class GRUBackwardFunction(Function):
    """:func:`fused_rnn.ops.gru_backward`; its gradient, and all further ones, are the reference's."""

    @staticmethod
    def forward(needed: tuple[bool, ...], *tensors: Any) -> tuple[Tensor, ...]:
        """Return the operator's outputs; for the arguments see :func:`_backward`."""
        return _backward(needed, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the arguments; what the forward pass has saved follows from the others."""
        needed, batch_sizes, lengths, _, _, *tensors = inputs
        ctx.needed = needed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, lengths, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments, None where they are not needed."""
        batch_sizes, lengths, *tensors = ctx.saved_tensors
        function = partial(_reference, batch_sizes, lengths)
        return *(None,) * 5, *second_gradients(
            function, tensors[2:], ctx.needed, tensors[:2], ctx.needs_input_grad[5:], grads[: len(ctx.needed)]
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the gradients for all indices of the vmapped dimension."""
        # Gradients of the weights are wanted for each index, and an operator adds up those of its whole batch.
        foldable = not any(args[0][2:])
        return vmap_layer(GRUBackwardFunction.apply, info.batch_size, in_dims, args, 1, 9, foldable)


def _backward(
    needed: tuple[bool, ...],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    h0: Tensor,
    *weights: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of input, h0 and weights; those that are not ``needed`` may be missing or empty."""
    needs_input, needs_h0, *needs_weights = needed
    *gradients, grad_weights = ops.gru_backward(
        grad_output, grad_h_n, input, h0, weights, batch_sizes, lengths, output, gates,
        needs_input, needs_h0, any(needs_weights),
    )  # fmt: skip
    return *gradients, *grad_weights


def _reference(
    batch_sizes: Tensor | None, lengths: Tensor | None, input: Tensor, h0: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the operator does, but for the gates."""
    if h0.dim() == 2:
        h = reference.gru_cell(input, h0, *weights)
        return h, h
    return reference.gru(input, h0, weights, batch_sizes, lengths)
