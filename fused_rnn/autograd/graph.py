"""Common parts of the operators' autograd functions: when to call them, and how to differentiate them twice."""

from collections.abc import Callable, Sequence
from itertools import compress, zip_longest
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import FunctionalizeInterpreter, retrieve_current_functorch_interpreter
from torch._functorch.utils import unwrap_dead_wrappers
from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI
from torch.autograd import Function, forward_ad


def needs_graph(*tensors: Tensor | None) -> bool:
    """Whether an operator on ``tensors`` must go through its autograd function rather than be called directly.

    It must also inside the transforms of torch.func, whose rules the autograd function defines. But a trace of
    torch.jit.trace must contain the operator itself, since a model with a Python function in it cannot be saved; the
    operator then computes the gradients without the help of Python.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:  # a loop, which is faster than any(): one small step takes only microseconds
            if tensor is not None and tensor.requires_grad:
                return not torch.jit.is_tracing()
    return False


def apply(function: Any, *args: Any) -> tuple[Tensor, ...]:
    """Do what ``function.apply(*args)`` does for a torch.autograd.Function, in less time.

    ``Function.apply`` first inspects the signature of ``forward`` for default arguments, which takes four times as long
    as a small step. Our functions have no default arguments, so this calls directly what ``apply`` calls afterwards.
    """
    if torch.compiler.is_compiling():
        return function.apply(*_distinct(args))
    if torch._C._are_functorch_transforms_active():
        interpreter = retrieve_current_functorch_interpreter()
        if isinstance(interpreter, FunctionalizeInterpreter):
            return _functionalized(function, FunctorchFunctionalizeAPI(interpreter), args)
        return function.apply(*args)
    return super(Function, function).apply(*unwrap_dead_wrappers(args))


def _functionalized(function: Any, level: FunctorchFunctionalizeAPI, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Apply an autograd function within torch.func.functionalize, which has no rule for such functions.

    Ours change no tensor in place, so they are applied to the tensors under those of functionalize.
    """
    unwrapped = level.unwrap_tensors(args)
    with level.redispatch_to_next():
        outputs = apply(function, *unwrapped)
    wrapped: Any = level.wrap_tensors(cast(Any, outputs))
    return wrapped


def _distinct(args: Sequence[Any]) -> list[Any]:
    """Replace a tensor that is passed again by a view of it, since torch.compile refuses repeated tensors."""
    distinct: list[Any] = []
    for arg in args:
        repeated = isinstance(arg, Tensor) and any(arg is other for other in distinct)
        distinct.append(arg.view_as(arg) if repeated else arg)
    return distinct


def forward_mode() -> bool:
    """Whether tensors may carry tangents: those of torch.autograd.forward_ad, torch.func.jvp, jacfwd or hessian.

    In that case the reference is called instead of the operator, since PyTorch can differentiate it in every order and
    direction. An autograd function with a method ``jvp`` is no alternative, since torch.compile cannot trace it.
    """
    return forward_ad._current_level >= 0


def calls_reference() -> bool:
    """Return whether the reference is called instead of the operator.

    It is in forward mode, and where torch.func.functionalize is around another transform: PyTorch has no rule for
    autograd functions there.
    """
    if forward_mode():
        return True
    if not torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == TransformType.Functionalize for level in levels[:-1])


def reaches_operator(input: Tensor) -> bool:
    """Whether a call with ``input`` ends in a kernel, which checks all its arguments.

    It does not where only shapes are computed, nor where a transform of torch.func calls the reference.
    """
    return (
        type(input) is Tensor
        and not input.is_meta
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not forward_mode()
    )


def legacy_vmap(*grad_outputs: Tensor | None) -> bool:
    """Whether a backward pass runs for a batch of output gradients outside torch.func.

    ``torch.autograd.grad(is_grads_batched=True)`` does so. It does not use the vmap rules of autograd functions and
    cannot call operators that take a list of tensors, but it can run the reference.
    """
    if torch.compiler.is_compiling():
        return False
    return any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grad_outputs)


def reference_outputs(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    """Call a reference in the precision of its operator, which computes half precision in float32.

    Args:
        function: the reference, called with ``inputs``.
        inputs: its arguments, of any shapes and one dtype, or None; the first one is not None.

    Returns:
        The outputs of the reference, in the dtype of the inputs.
    """
    return tuple(output.to(inputs[0].dtype) for output in function(*map(_widened, inputs)))


def reference_gradients(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Differentiate a reference such that the gradients can be differentiated again.

    Args:
        function: the reference, called with ``inputs``; half precision is computed in float32, as in the kernels.
        inputs: the arguments of the reference, of any shapes.
        needed: for each input, whether its gradient is needed.
        grad_outputs: for each output, its gradient, or None for zero.

    Returns:
        For each input, its gradient, or None where it is not needed.
    """
    grads = [grad for grad in grad_outputs if grad is not None]
    if not grads:
        return [
            torch.zeros_like(tensor) if need and tensor is not None else None
            for need, tensor in zip(needed, inputs, strict=True)
        ]
    used = [grad is not None for grad in grad_outputs]

    def function_of_needed(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        all_inputs = (next(given) if need else tensor for need, tensor in zip(needed, inputs, strict=True))
        return tuple(compress(function(*map(_widened, all_inputs)), used))

    outputs, pull_back, *_ = torch.func.vjp(function_of_needed, *compress(inputs, needed))
    gradients = iter(pull_back(tuple(grad.to(out.dtype) for out, grad in zip(outputs, grads, strict=True))))
    return [next(gradients) if need else None for need in needed]


def second_gradients(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    first_needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Differentiate :func:`reference_gradients`, again such that the gradients can be differentiated.

    Args:
        function: the reference.
        inputs: the arguments of the reference.
        first_needed: for each input, whether its first gradient was needed.
        grad_outputs: for each output, its gradient, or None for zero.
        needed: for each of ``grad_outputs`` and then of ``inputs``, whether its gradient is needed.
        grads: for each of the first gradients of ``inputs``, the gradient with respect to it, or None for zero.

    Returns:
        For each of ``grad_outputs`` and ``inputs``, its gradient, or None where it is not needed.
    """
    count = len(grad_outputs)

    def first(*tensors: Tensor) -> list[Tensor]:
        gradients = reference_gradients(function, tensors[count:], first_needed, tensors[:count])
        return [gradient for gradient in gradients if gradient is not None]

    return reference_gradients(first, (*grad_outputs, *inputs), needed, tuple(compress(grads, first_needed)))


def where_needed(gradients: Sequence[Tensor | None], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return the gradient of each argument, or None where it is not needed; ``gradients`` may be shorter than that."""
    return tuple(gradient if need else None for gradient, need in zip_longest(gradients, needed))


def _widened(tensor: Tensor | None) -> Tensor | None:
    is_half = tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if tensor is not None and is_half else tensor
