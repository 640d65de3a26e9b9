"""What the autograd functions of several operators share: when a graph is needed, and how to differentiate twice."""

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor
from torch.autograd import forward_ad


def needs_graph(*tensors: Tensor | None) -> bool:
    """Whether an operator on ``tensors`` must go through its autograd function rather than be called directly.

    Forward-mode differentiation counts as well: its tensors carry a tangent that a direct call would drop silently,
    while an autograd function without a jvp raises.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:  # a loop and no any(): inference of one step counts microseconds
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def reference_gradients(
    function: Callable[..., Sequence[Tensor] | Tensor],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Differentiate a reference so that the gradients can themselves be differentiated.

    Args:
        function: the reference, called with ``inputs``; half precision is computed in float32, as the kernels do.
        inputs: its arguments, of any shapes.
        needed: for each input whether its gradient is needed.
        grad_outputs: for each output its gradient, or None for zero.

    Returns:
        For each input its gradient, or None where it is not needed.
    """
    with torch.enable_grad():
        # Fresh views: the gradients stop at them, while a second differentiation goes on through them to the inputs.
        views = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        outputs = function(*(_widened(view) for view in views))
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        pairs = [(out, grad) for out, grad in zip(outputs, grad_outputs, strict=True) if grad is not None]
        wanted = [view for view, need in zip(views, needed, strict=True) if need and view is not None]
        gradients = iter(
            torch.autograd.grad(
                [out for out, _ in pairs],
                wanted,
                [grad.to(out.dtype) for out, grad in pairs],
                create_graph=True,
                materialize_grads=True,
            )
        )
    return [next(gradients) if need and view is not None else None for view, need in zip(views, needed, strict=True)]


def where_needed(gradients: Sequence[Tensor | None], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return for each argument its gradient, or None where it is not needed; those at the end may be missing."""
    return tuple(gradient if need else None for gradient, need in zip_longest(gradients, needed))


def _widened(tensor: Tensor | None) -> Tensor | None:
    is_half = tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if tensor is not None and is_half else tensor
