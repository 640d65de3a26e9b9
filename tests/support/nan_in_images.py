"""Checks that a NaN in what a masked convolution must not see changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch
from convolution_cases import MASKS, VERTICAL, ConvolutionCase, Layout
from torch import Tensor

NAN_CASES = [
    ConvolutionCase(channels, out_channels, kernel, mask_type, groups, (4, 9), dilation)
    for (mask_type, groups), (kernel, dilation), (channels, out_channels) in product(
        MASKS, [((3, 3), (1, 1)), ((5, 5), (1, 1)), ((1, 1), (1, 1)), ((3, 3), (1, 2))], [(3, 7), (40, 67)]
    )
] + [
    # The rows above the centre are 3x3 and 5x5 taps, for which cuDNN has algorithms that mix pixels.
    ConvolutionCase(16, 16, kernel, mask_type, size=(4, 9))
    for kernel, mask_type in (((7, 3), "B"), ((5, 3), "vertical_B"), ((11, 5), "A"))
]  # fmt: skip
PIXELS = (0, 8, 9, 22, 35)


def check_nan_in_the_future(case: ConvolutionCase, dtype: torch.dtype, layout: Layout, device: str) -> None:
    """Assert that NaN in the input beyond what a pixel may see leaves its output as it is."""
    input, weight, bias = (tensor.to(device) for tensor in case.tensors(dtype).values())
    out_groups = torch.arange(case.out_channels) * case.data_channels // case.out_channels
    with _same_sums():
        clean = case.ours(layout(input), weight, bias).flatten(2).cpu()
        for pixel, group in product(PIXELS, range(case.data_channels)):
            unseen = _future(case, pixel, group).to(device)
            spoilt = input.flatten(2).masked_fill(unseen, float("nan")).view_as(input)
            output = case.ours(layout(spoilt), weight, bias).flatten(2).cpu()
            assert torch.equal(output[..., :pixel], clean[..., :pixel])
            assert torch.equal(output[:, out_groups <= group, pixel], clean[:, out_groups <= group, pixel])


def check_nan_in_the_gradient_of_the_past(
    case: ConvolutionCase, dtype: torch.dtype, layout: Layout, device: str
) -> None:
    """Assert that NaN in the gradient of outputs leaves the gradients of inputs that they do not see as they are."""
    input, weight, bias = (tensor.to(device) for tensor in case.tensors(dtype).values())
    input.requires_grad_()
    grad = torch.randn(case.batch, case.out_channels, *case.size, dtype=dtype)

    def grad_input(grad: Tensor) -> Tensor:
        output = case.ours(layout(input), weight, bias)
        return torch.autograd.grad(output, input, layout(grad.to(device)))[0].flatten(2).cpu()

    with _same_sums():
        clean = grad_input(grad)
        for pixel in PIXELS:
            spoilt = grad.flatten(2).clone()
            spoilt[..., :pixel] = float("nan")
            spoilt[:, 0, pixel] = float("nan")
            unseen = _future(case, pixel, 0)
            assert torch.equal(grad_input(spoilt.view_as(grad))[:, unseen], clean[:, unseen])


def _future(case: ConvolutionCase, pixel: int, group: int) -> Tensor:
    """Return which values, ``[in_channels, height * width]``, a pixel's outputs of ``group`` must not depend on."""
    groups = torch.arange(case.in_channels) * case.data_channels // case.in_channels
    pixels = torch.arange(case.size[0] * case.size[1])
    if case.mask_type in VERTICAL:
        rows, row = pixels // case.size[1], pixel // case.size[1]
        return (rows > row if case.mask_type == "vertical_B" else rows >= row).expand(case.in_channels, -1)
    at_pixel = groups > group if case.mask_type == "B" else groups >= group
    return (pixels > pixel) | ((pixels == pixel) & at_pixel.view(-1, 1))


@contextmanager
def _same_sums() -> Iterator[None]:
    """Let every call add in the same order, so that results may be compared bit for bit."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
