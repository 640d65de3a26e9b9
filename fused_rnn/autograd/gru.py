"""The operator ``gru`` with its gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_rnn import ops, reference
from fused_rnn.autograd.graph import needs_graph, reference_gradients, where_needed


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
    if needs_graph(input, h0, *weights):
        output, h_n, _ = GRUFunction.apply(input, h0, batch_sizes, lengths, *weights)
    else:
        output, h_n, _ = ops.gru(input, h0, weights, batch_sizes, lengths, False)
    return output, h_n


class GRUFunction(torch.autograd.Function):
    """:func:`fused_rnn.ops.gru` and its gradient; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        input: Tensor, h0: Tensor, batch_sizes: Tensor | None, lengths: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the operator's outputs, with what the backward pass needs."""
        return ops.gru(input, h0, weights, batch_sizes, lengths, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save through save_for_backward, which notices a later change in place."""
        sequence, _, gates = output
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(sequence, gates, *inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments, None where they are not needed."""
        output, gates, input, h0, batch_sizes, lengths, *weights = ctx.saved_tensors
        needs_input, needs_h0, _, _, *needs_weights = ctx.needs_input_grad
        if torch.is_grad_enabled():
            gradients = reference_gradients(
                lambda input, h0, *weights: reference.gru(input, h0, weights, batch_sizes, lengths),
                (input, h0, *weights),
                (needs_input, needs_h0, *needs_weights),
                (grad_output, grad_h_n),
            )
            return *gradients[:2], None, None, *gradients[2:]
        grad_input, grad_h0, grad_weights = ops.gru_backward(
            grad_output, grad_h_n, input, h0, weights, batch_sizes, lengths, output, gates,
            needs_input, needs_h0, any(needs_weights),
        )  # fmt: skip
        return where_needed((grad_input, grad_h0, None, None, *grad_weights), ctx.needs_input_grad)
