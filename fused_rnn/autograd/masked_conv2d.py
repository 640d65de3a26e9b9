"""The operator ``masked_conv2d`` with its gradients."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd import Function

from fused_rnn import ops, reference
from fused_rnn.autograd.batching import IMAGES, Batched, fold, loop, shared, unfold
from fused_rnn.autograd.graph import (
    apply,
    calls_reference,
    needs_graph,
    reference_outputs,
    second_gradients,
    where_needed,
)

Options = tuple[str, int, tuple[int, int]]
"""``mask_type``, ``data_channels`` and ``dilation``."""


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
    options = (mask_type, data_channels, dilation)
    if calls_reference():
        (output,) = reference_outputs(partial(_reference, options), (input, weight, bias))
        return output
    if needs_graph(input, weight, bias):
        (output,) = apply(MaskedConv2dFunction, options, input, weight, bias)
        return output
    return ops.masked_conv2d(input, weight, bias, *options)


class MaskedConv2dFunction(Function):
    """:func:`fused_rnn.ops.masked_conv2d` and its gradient."""

    @staticmethod
    def forward(options: Options, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
        """Return the operator's output."""
        return (ops.masked_conv2d(input, weight, bias, *options),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        """Save tensors by save_for_backward, which detects a later modification in place."""
        ctx.options, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each argument of forward, None where it is not needed."""
        needed, tensors = tuple(ctx.needs_input_grad[1:]), ctx.saved_tensors
        graph = needs_graph(grad_output, *tensors)
        backward: Any = partial(apply, MaskedConv2dBackwardFunction) if graph else _backward
        return None, *where_needed(backward(ctx.options, needed, grad_output, *tensors), needed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the output for all indices of the vmapped dimension."""
        if info.batch_size == 0 or not shared(in_dims[2:]):
            return loop(MaskedConv2dFunction.apply, in_dims, info.batch_size, *args)
        options, input, weight, bias = args
        images = fold(input, in_dims[1], info.batch_size, IMAGES)
        return unfold(MaskedConv2dFunction.apply(options, images, weight, bias), info.batch_size, IMAGES)


class MaskedConv2dBackwardFunction(Function):
    """:func:`fused_rnn.ops.masked_conv2d_backward`; its gradient and all higher ones are computed by the reference."""

    @staticmethod
    def forward(
        options: Options,
        needed: tuple[bool, bool, bool],
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the operator's outputs."""
        return _backward(options, needed, grad_output, input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the arguments, from which the reference computes the second gradients."""
        ctx.options, ctx.needed, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient of each argument of forward, None where it is not needed."""
        grad_output, *inputs = ctx.saved_tensors
        return (
            None,
            None,
            *second_gradients(
                partial(_reference, ctx.options), inputs, ctx.needed, (grad_output,), ctx.needs_input_grad[2:], grads
            ),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the gradients for all indices of the vmapped dimension."""
        options, needed, *images, weight, bias = args
        # Each index has its own weight gradients, but one call of the operator sums them over its whole batch.
        if any(needed[1:]) or info.batch_size == 0 or not shared(in_dims[4:]):
            return loop(MaskedConv2dBackwardFunction.apply, in_dims, info.batch_size, *args)
        folded = [fold(tensor, dim, info.batch_size, IMAGES) for tensor, dim in zip(images, in_dims[2:4], strict=True)]
        gradients = MaskedConv2dBackwardFunction.apply(options, needed, *folded, weight, bias)
        return unfold(gradients, info.batch_size, IMAGES)


def _backward(
    options: Options,
    needed: tuple[bool, bool, bool],
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias, of shape [0] where they are not ``needed``."""
    return ops.masked_conv2d_backward(grad_output, input, weight, *options, *needed)


def _reference(options: Options, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    """Return what the operator does, computed by the reference."""
    return (reference.masked_conv2d(input, weight, bias, *options),)
