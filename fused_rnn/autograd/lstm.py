"""The operator ``lstm`` with its gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_rnn import ops, reference
from fused_rnn.autograd.graph import needs_graph, reference_gradients, where_needed


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
    if needs_graph(input, h0, c0, *weights):
        output, h_n, c_n, _, cells = LSTMFunction.apply(input, h0, c0, batch_sizes, lengths, *weights)
    else:
        output, h_n, c_n, _, cells = ops.lstm(input, h0, c0, weights, batch_sizes, lengths, return_states)
    if not return_states:
        return output, h_n, c_n
    width = c0.size(0) * c0.size(2)
    return output, h_n, c_n, cells.transpose(0, 1).reshape(*output.shape[:-1], width).to(output.dtype)


class LSTMFunction(torch.autograd.Function):
    """:func:`fused_rnn.ops.lstm` and its gradient; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        input: Tensor, h0: Tensor, c0: Tensor, batch_sizes: Tensor | None, lengths: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the operator's outputs, with what the backward pass needs."""
        return ops.lstm(input, h0, c0, weights, batch_sizes, lengths, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save through save_for_backward, which notices a later change in place."""
        sequence, _, _, gates, cells = output
        ctx.mark_non_differentiable(gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(sequence, gates, cells, *inputs)

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
        output, gates, cells, input, h0, c0, batch_sizes, lengths, *weights = ctx.saved_tensors
        needs_input, needs_h0, needs_c0, _, _, *needs_weights = ctx.needs_input_grad
        if torch.is_grad_enabled():
            gradients = reference_gradients(
                lambda input, h0, c0, *weights: _reference(input, h0, c0, weights, batch_sizes, lengths),
                (input, h0, c0, *weights),
                (needs_input, needs_h0, needs_c0, *needs_weights),
                (grad_output, grad_h_n, grad_c_n, grad_cells),
            )
            return *gradients[:3], None, None, *gradients[3:]
        grad_input, grad_h0, grad_c0, grad_weights = ops.lstm_backward(
            grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes, lengths,
            output, gates, cells, needs_input, needs_h0 or needs_c0, any(needs_weights),
        )  # fmt: skip
        return where_needed((grad_input, grad_h0, grad_c0, None, None, *grad_weights), ctx.needs_input_grad)


def _reference(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the operator does, but for the gates: ``cells`` is ``[directions, rows, hidden_size]``."""
    output, h_n, c_n, cells = reference.lstm(input, h0, c0, weights, batch_sizes, lengths, return_states=True)
    return output, h_n, c_n, cells.reshape(-1, c0.size(0), c0.size(2)).transpose(0, 1)
