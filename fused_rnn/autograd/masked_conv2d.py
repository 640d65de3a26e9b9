"""The operators ``masked_conv2d`` and ``masked_conv2d_fused`` with their gradients."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fused_rnn import ops, reference
from fused_rnn.autograd.batching import IMAGES, Batched, fold, loop, shared, unfold
from fused_rnn.autograd.graph import (
    apply,
    calls_reference,
    needs_graph,
    reference_gradients,
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


def masked_conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
    activation: str,
) -> Tensor:
    """Convolve, apply an activation and add a residual, differentiably; see :func:`fused_rnn.ops.masked_conv2d_fused`.

    Returns:
        ``[batch, out_channels, height, width]``, half as many channels with a gate.
    """
    options = (mask_type, data_channels, dilation)
    if calls_reference():
        function = partial(_fused_reference, options, activation)
        (output,) = reference_outputs(function, (input, weight, bias, residual))
        return output
    if needs_graph(input, weight, bias, residual):
        output, _ = apply(MaskedConv2dFusedFunction, options, activation, input, weight, bias, residual)
        return output
    output, _ = ops.masked_conv2d_fused(input, weight, bias, residual, *options, activation, False)
    return output


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


class MaskedConv2dFusedFunction(Function):
    """:func:`fused_rnn.ops.masked_conv2d_fused` and its gradient, which can be differentiated again."""

    @staticmethod
    def forward(
        options: Options,
        activation: str,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the operator's outputs, with the sums that the backward pass needs."""
        return ops.masked_conv2d_fused(input, weight, bias, residual, *options, activation, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Save tensors by save_for_backward, which detects a later modification in place."""
        ctx.options, ctx.activation, *tensors, residual = inputs
        result, sums = output
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        # Without sums, the output of ReLU says where its derivative is zero. No other output is read, so that the
        # caller may change it in place.
        from_output = ctx.activation == "relu" and residual is None
        ctx.save_for_backward(result if from_output else sums, *tensors)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Return the gradient of each argument of forward, None where it is not needed."""
        *needed, residual_needed = ctx.needs_input_grad[2:]
        if grad_output is None:
            return (None,) * 6
        activated, *tensors = ctx.saved_tensors
        graph = needs_graph(grad_output, *tensors)
        gradients: tuple[Tensor, ...] = ()
        if any(needed):
            if graph and ctx.activation != "none":
                activated = masked_conv2d(*tensors, *ctx.options)  # again, as a function of the tensors
            grad_sums = _activation_gradient(ctx.options, ctx.activation, grad_output, activated, graph)
            backward: Any = partial(apply, MaskedConv2dBackwardFunction) if graph else _backward
            gradients = backward(ctx.options, tuple(needed), grad_sums, *tensors)
        return None, None, *where_needed(gradients, needed), grad_output if residual_needed else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Batched:
        """Return the outputs for all indices of the vmapped dimension."""
        if info.batch_size == 0 or not shared(in_dims[3:5]):
            return loop(MaskedConv2dFusedFunction.apply, in_dims, info.batch_size, *args)
        options, activation, input, weight, bias, residual = args
        images, added = (
            fold(tensor, dim, info.batch_size, IMAGES) for tensor, dim in ((input, in_dims[2]), (residual, in_dims[5]))
        )
        outputs = MaskedConv2dFusedFunction.apply(options, activation, images, weight, bias, added)
        return unfold(outputs, info.batch_size, IMAGES)


def _activation_gradient(
    options: Options, activation: str, grad_output: Tensor, activated: Tensor, graph: bool
) -> Tensor:
    """Return the gradient of the sums to which an activation was applied.

    Args:
        options: those of the convolution.
        activation: ``"none"``, ``"relu"`` or ``"gated"``.
        grad_output: the gradient of the activation's result.
        activated: the sums, or for a ReLU its result.
        graph: whether the gradient must be differentiable.
    """
    data_channels = options[1]
    if activation == "none":
        return grad_output
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad_output, activated, 0)
    if not graph:
        return ops.gated_activation_backward(grad_output, activated, data_channels)
    (gradient,) = reference_gradients(partial(_gate, data_channels), (activated,), (True,), (grad_output,))
    assert gradient is not None
    return gradient


def _gate(data_channels: int, sums: Tensor) -> tuple[Tensor]:
    return (reference.gated_activation(sums, data_channels),)


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


def _fused_reference(
    options: Options, activation: str, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor]:
    """Return what the fused operator does, computed by the reference."""
    return (reference.masked_conv2d(input, weight, bias, *options, activation, residual),)
