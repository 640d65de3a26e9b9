"""The operator ``masked_conv2d`` with its gradients."""

from typing import Any

import torch
from torch import Tensor

from fused_rnn import ops, reference
from fused_rnn.autograd.graph import needs_graph, reference_gradients, where_needed


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
) -> Tensor:
    """Convolve images with a masked weight, differentiably; see :func:`fused_rnn.ops.masked_conv2d`.

    Returns:
        ``[batch, out_channels, height, width]``.
    """
    call = MaskedConv2dFunction.apply if needs_graph(input, weight, bias) else ops.masked_conv2d
    return call(input, weight, bias, mask_type, data_channels, dilation)


class MaskedConv2dFunction(torch.autograd.Function):
    """:func:`fused_rnn.ops.masked_conv2d` and its gradient; a second derivative goes through the reference."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask_type: str,
        data_channels: int,
        dilation: tuple[int, int],
    ) -> Tensor:
        """Return the operator's output."""
        return ops.masked_conv2d(input, weight, bias, mask_type, data_channels, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save through save_for_backward, which notices a later change in place."""
        input, weight, bias, *options = inputs
        ctx.save_for_backward(input, weight, bias)
        ctx.options = options

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments, None where they are not needed."""
        input, weight, bias = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            gradients = reference_gradients(
                lambda input, weight, bias: reference.masked_conv2d(input, weight, bias, *ctx.options),
                (input, weight, bias),
                needed,
                (grad_output,),
            )
            return *gradients, None, None, None
        found = ops.masked_conv2d_backward(grad_output, input, weight, *ctx.options, *needed)
        return where_needed(found, ctx.needs_input_grad)
