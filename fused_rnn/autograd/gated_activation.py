"""The operator ``gated_activation`` with its gradient."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fused_rnn import ops, reference
from fused_rnn.autograd.graph import apply, legacy_vmap, needs_graph, reaches_operator, reference_gradients


def gated_activation(input: Tensor, data_channels: int) -> Tensor:
    """Apply a gate, differentiably; see :func:`fused_rnn.ops.gated_activation`.

    PyTorch's own operators compute it on other devices than the CPU, in torch.compile, which fuses them, and in the
    transforms of torch.func.

    Returns:
        ``[batch, channels, height, width]``.
    """
    if input.device.type != "cpu" or not reaches_operator(input) or _is_recorded():
        return reference.gated_activation(input, data_channels)
    if needs_graph(input):
        (output,) = apply(GatedActivationFunction, input, data_channels)
        return output
    return ops.gated_activation(input, data_channels)


def _is_recorded() -> bool:
    """Whether calls are written down as a program that is to run without this package."""
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


class GatedActivationFunction(Function):
    """:func:`fused_rnn.ops.gated_activation` and its gradient, which can be differentiated again."""

    @staticmethod
    def forward(input: Tensor, data_channels: int) -> tuple[Tensor]:
        """Return the operator's output."""
        return (ops.gated_activation(input, data_channels),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor]) -> None:
        """Save the input, from which the gradient computes both factors again."""
        input, ctx.data_channels = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None]:
        """Return the gradient of the input."""
        (input,) = ctx.saved_tensors
        if needs_graph(grad_output, input) or legacy_vmap(grad_output):
            function = partial(_reference, ctx.data_channels)
            (grad_input,) = reference_gradients(function, (input,), (True,), (grad_output,))
        else:
            grad_input = ops.gated_activation_backward(grad_output, input, ctx.data_channels)
        return grad_input, None


def _reference(data_channels: int, input: Tensor) -> tuple[Tensor]:
    """Return what the operator does, computed by the reference."""
    return (reference.gated_activation(input, data_channels),)
