"""The peers of the masked convolution: the fused kernel, and conv2d(x, w * mask), each in both memory formats."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import fused_rnn
from benchmarks.cases import ConvolutionCase
from benchmarks.problem import FUSED, Peer, Problem, torch_peer
from fused_rnn import reference

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def convolution_problem(case: ConvolutionCase) -> Problem:
    """Make the data and peers of `case`, the same in every run.

    The fused kernel is timed on channels_last images, which suit it best, and also on contiguous ones.

    Args:
        case: The case to compute.

    Returns:
        The problem, in which all peers have the same weights.
    """
    torch.manual_seed(0)
    shape = (case.out_channels, case.in_channels, case.kernel_size, case.kernel_size)
    input = torch.randn(case.batch, case.in_channels, case.size, case.size)
    weight = torch.randn(shape) / (case.in_channels * case.kernel_size**2) ** 0.5
    bias = torch.randn(case.out_channels)
    grad_output = torch.randn(case.batch, case.out_channels, case.size, case.size)
    mask = _read_mask(case, shape)

    def peer(
        name: str, convolution: Convolution, layout: torch.memory_format, dtype: torch.dtype = torch.float32
    ) -> Peer:
        leaves = [
            tensor.to(dtype=dtype, memory_format=layout).clone().requires_grad_() for tensor in (input, weight)
        ] + [bias.to(dtype, copy=True).requires_grad_()]
        return torch_peer(
            name, lambda: (convolution(*leaves),), leaves, grad_output.to(dtype=dtype, memory_format=layout)
        )

    def fused(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_rnn.functional.masked_conv2d(input, weight, bias, case.mask_type, case.data_channels)

    def dense(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv2d(input, weight * mask, bias, padding=case.kernel_size // 2)

    def oracle(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.masked_conv2d(input, weight, bias, case.mask_type, case.data_channels)

    peers = [
        peer(FUSED, fused, torch.channels_last),
        peer("dense channels_last", dense, torch.channels_last),
        peer("dense NCHW", dense, torch.contiguous_format),
        peer("fused NCHW", fused, torch.contiguous_format),
    ]
    return Problem(
        peers,
        peer("reference in float64", oracle, torch.contiguous_format, torch.float64),
        yardstick="dense channels_last",
        forward_names=("output",),
        gradient_names=("input", "weight", "bias"),
    )


def _read_mask(case: ConvolutionCase, shape: tuple[int, ...]) -> Tensor:
    """The mask `[out_channels, in_channels, k, k]`: 1 for each weight on which the reference's output depends."""
    image = torch.ones(1, case.in_channels, case.kernel_size, case.kernel_size)
    weight = torch.zeros(shape, requires_grad=True)
    output = reference.masked_conv2d(image, weight, None, case.mask_type, case.data_channels)
    (gradient,) = torch.autograd.grad(output.sum(), weight)
    return (gradient != 0).float()
