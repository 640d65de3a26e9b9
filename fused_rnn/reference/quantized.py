"""Products with weights in int8, in plain PyTorch: the definition that kernels of frozen layers are tested against."""

from collections.abc import Callable

import torch
from torch import Tensor

Linear = Callable[..., Tensor]
"""``(input, weight, bias) -> output``, as torch.nn.functional.linear."""
MOST = 127
"""The largest magnitude of a quantised number."""


def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round the vectors in the last dimension to integers from -127 to 127, each with a scale of its own.

    A vector is about its scale times its integers, and its largest magnitude is exactly 127 scales: symmetric
    quantisation, as for example in Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018. Scales are computed in float32. A vector of magnitudes below 1.5e-36 has
    scale 0, and one with a NaN or an infinity has scale NaN; the integers of both are 0.

    Args:
        values: ``[..., size]``.

    Returns:
        The integers, ``[..., size]``, int8, and the scales, ``[..., 1]``, float32.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> reference.quantize(torch.tensor([[0.1, -0.5, 1.27]]))
        (tensor([[ 10, -50, 127]], dtype=torch.int8), tensor([[0.0100]]))
    """
    values = values.float()
    largest = values.abs().amax(dim=-1, keepdim=True) if values.size(-1) else values.new_zeros(*values.shape[:-1], 1)
    usable = largest.isfinite() & (largest >= MOST * torch.finfo(torch.float32).tiny)
    # PyTorch computes a number over a tensor as a product with the reciprocal, which is rounded twice.
    factor = torch.where(usable, torch.full_like(largest, MOST) / largest, torch.zeros_like(largest))
    integers = torch.where(usable, values * factor, torch.zeros_like(values)).round()
    scale = torch.where(usable, largest / MOST, torch.where(largest.isfinite(), 0.0, torch.nan))
    return integers.to(torch.int8), scale


def quantized_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply quantised vectors with a quantised matrix.

    Every vector of the input and every row of the weight is rounded by :func:`quantize`. The sums of products are sums
    of integers, and so exact.

    Args:
        input: ``[..., in_features]``.
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]``, or None for zero.

    Returns:
        ``[..., out_features]``, in the dtype of the input.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> reference.quantized_linear(torch.tensor([[0.5, 1.0]]), torch.tensor([[2.0, -4.0]]))
        tensor([[-2.9842]])
    """
    numbers, input_scale = quantize(input)
    weights, weight_scale = quantize(weight)
    sums = torch.nn.functional.linear(numbers.double(), weights.double())  # below 2^53, so exact
    output = sums * (input_scale.double() * weight_scale.double().squeeze(-1))
    return (output if bias is None else output + bias).to(input.dtype)
