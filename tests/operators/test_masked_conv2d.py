"""Masked convolution compared with conv2d(x, w * mask) in float64, in many forms, sizes, layouts and dtypes."""

import os
from collections.abc import Callable
from functools import partial
from itertools import combinations, product
from typing import Any

import pytest
import torch
from comparing import assert_accurate, assert_all_accurate, assert_identical, assert_little_noise
from convolution_cases import FORMS, MASKS, TAILS, ConvolutionCase, Layout, as_made, channels_last
from torch import Tensor
from torch.nn.functional import conv2d, pad

from fused_rnn import functional, reference
from fused_rnn.reference.masked_conv2d import mask

F64 = torch.float64


def strided(images: Tensor) -> Tensor:
    """Return the same images with gaps between the values in memory."""
    return torch.stack([images, images], -1)[..., 1]


def transposed(images: Tensor) -> Tensor:
    """Return the same images, dense, but in neither of the two memory formats."""
    return images.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS: list[Layout] = [as_made, channels_last, strided, transposed]


@pytest.mark.parametrize("case", FORMS + TAILS, ids=str)
def test_reference(case: ConvolutionCase) -> None:
    kernel_mask = mask(case.out_channels, case.in_channels, case.kernel_size, case.mask_type, case.data_channels)
    assert torch.equal(kernel_mask, case.mask())
    tensors = case.tensors(F64)
    output = reference.masked_conv2d(tensors["input"], tensors["weight"], tensors.get("bias"), *case.options)
    assert torch.equal(output, case.oracle(*tensors.values()))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("case", FORMS + TAILS, ids=str)
def test_float64(case: ConvolutionCase, layout: Layout, device: str) -> None:
    ours = case.result(case.ours, F64, layout, layout, device=device)
    assert_all_accurate(ours, case.result(case.oracle, F64))


@pytest.mark.instruction_sets
def test_long_sums_have_little_noise(device: str) -> None:
    case = ConvolutionCase(batch=2, in_channels=128, out_channels=128, size=(12, 12), kernel_size=(5, 5))
    ours, peer = (
        {name: tensor.cpu() for name, tensor in case.result(convolution, torch.float32, device=device).items()}
        for convolution in (case.ours, case.oracle)
    )
    assert_little_noise(ours, case.result(case.oracle, F64), peer)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", FORMS[::5] + TAILS, ids=str)
def test_other_dtypes(case: ConvolutionCase, dtype: torch.dtype, device: str) -> None:
    exact, peer = case.result(case.oracle, F64), case.result(case.oracle, dtype)
    assert_all_accurate(case.result(case.ours, dtype, device=device), exact, peer)


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 16, 20])
def test_layouts(channels: int, layout: Layout, grad_layout: Layout, device: str) -> None:
    case = ConvolutionCase(channels, 17, size=(6, 7))
    exact = case.result(case.oracle, F64)
    ours = case.result(case.ours, F64, layout, grad_layout, device=device)
    assert_all_accurate(ours, exact)
    if device == "cpu":
        assert_identical(ours, case.result(case.ours, F64))


def inside(weight: Tensor) -> Tensor:
    """Return the same weight as a part of a larger one, whose other taps are NaN."""
    return pad(weight, (1, 1, 1, 1), value=float("nan"))[..., 1:-1, 1:-1]


@pytest.mark.parametrize("layout", [*LAYOUTS, inside])
@pytest.mark.parametrize("kernel_size", [(1, 1), (1, 3), (5, 1), (3, 5)], ids=str)
def test_layouts_of_the_weight(kernel_size: tuple[int, int], layout: Layout) -> None:
    case = ConvolutionCase(5, 18, kernel_size, data_channels=2)
    once = case.result(case.ours, F64)
    assert_all_accurate(once, case.result(case.oracle, F64))
    assert_identical(case.result(case.ours, F64, weight_layout=layout), once)


def test_expanded_input_and_gradient() -> None:
    case = ConvolutionCase()
    _, weight, bias = case.tensors(F64).values()
    images = torch.randn(1, 4, 1, 6, dtype=F64).expand(3, 4, 5, 6)
    results: list[dict[str, Any]] = []
    for convolution in (case.ours, case.oracle):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (weight, bias)]
        output = convolution(images, *leaves)
        output.sum().backward()
        results.append({"output": output.detach(), "weight": leaves[0].grad, "bias": leaves[1].grad})
    assert_all_accurate(*results)


@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("input_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("in_channels", "size"), [(4, (5, 6)), (1, (5, 6)), (4, (1, 1))])
def test_memory_format_is_that_of_conv2d(
    in_channels: int,
    size: tuple[int, int],
    input_format: torch.memory_format,
    weight_format: torch.memory_format,
    device: str,
) -> None:
    case = ConvolutionCase(in_channels, size=size)
    input, weight, bias = case.tensors(torch.float32).values()
    input, weight = input.contiguous(memory_format=input_format), weight.contiguous(memory_format=weight_format)
    masked = (weight * case.mask()).contiguous(memory_format=weight_format)
    expected = torch.nn.functional.conv2d(input, masked, bias, padding=1)
    assert case.ours(input.to(device), weight.to(device), bias.to(device)).stride() == expected.stride()


@pytest.mark.parametrize("case", [ConvolutionCase(batch=0), ConvolutionCase(batch=0, bias=False)], ids=str)
def test_empty_batch(case: ConvolutionCase, device: str) -> None:
    result = {name: tensor.cpu() for name, tensor in case.result(case.ours, torch.float32, device=device).items()}
    assert_identical(result, case.result(case.oracle, torch.float32))
    assert not result["grad weight"].any()


@pytest.mark.parametrize("case", [ConvolutionCase(kernel_size=(1, 1), mask_type="A"), ConvolutionCase(0)], ids=str)
def test_nothing_to_sum(case: ConvolutionCase, device: str) -> None:
    result = {name: tensor.cpu() for name, tensor in case.result(case.ours, F64, device=device).items()}
    assert torch.equal(result["output"], case.tensors(F64)["bias"].view(1, -1, 1, 1).expand_as(result["output"]))
    assert not result["grad weight"].any()
    assert not result["grad input"].any()


@pytest.mark.parametrize("dilation", [(5, 6), (1, 2**62), (2**62, 1), (2**63 - 1, 2**63 - 1)], ids=str)
def test_dilation_beyond_the_image(dilation: tuple[int, int], device: str) -> None:
    far, near = ConvolutionCase(kernel_size=(5, 5), dilation=dilation), ConvolutionCase(kernel_size=(5, 5))
    tensors = far.tensors(F64)
    output = far.ours(*(tensor.to(device) for tensor in tensors.values()))
    # Only taps in the row or column of the centre are inside the image for any pixel.
    rows = slice(2, 3) if dilation[0] > 1 else slice(5)
    columns = slice(2, 3) if dilation[1] > 1 else slice(5)
    meets = torch.zeros(5, 5, dtype=F64)
    meets[rows, columns] = 1
    tensors["weight"] *= meets
    assert_accurate(output, near.oracle(*tensors.values()))
    if device == "cpu":
        assert torch.equal(output, near.ours(*tensors.values()))


def test_unbatched() -> None:
    case = ConvolutionCase()
    input, weight, bias = case.tensors(F64).values()
    assert torch.equal(case.ours(input[0], weight, bias), case.ours(input, weight, bias)[0])


def test_dilation_of_one_number() -> None:
    input, weight, bias = ConvolutionCase().tensors(F64).values()
    one = functional.masked_conv2d(input, weight, bias, dilation=2)
    assert torch.equal(one, functional.masked_conv2d(input, weight, bias, dilation=(2, 2)))


@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
def test_masked_weights_get_no_gradient(mask_type: str, groups: int) -> None:
    case = ConvolutionCase(7, 9, mask_type=mask_type, data_channels=groups)
    gradient = case.result(case.ours, F64)["grad weight"]
    assert torch.equal(gradient != 0, case.mask())


@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
@pytest.mark.parametrize(("in_channels", "out_channels"), [(7, 9), (40, 67)])
def test_nan_in_the_input_reaches_no_masked_weight(
    in_channels: int, out_channels: int, mask_type: str, groups: int, device: str
) -> None:
    case = ConvolutionCase(in_channels, out_channels, mask_type=mask_type, data_channels=groups)
    input, weight, bias = case.tensors(F64).values()
    input[0, ::2, 2, 3] = float("nan")
    masked, grads = weight * case.mask(), list[Tensor]()
    for convolution, kernel, on in ((case.ours, weight, device), (partial(conv2d, padding=1), masked, "cpu")):
        output = convolution(input.to(on), kernel.requires_grad_().to(on), bias.to(on))
        grads += torch.autograd.grad(output, kernel, torch.ones_like(output))
    ours, dense = grads
    assert not ours[~case.mask()].any()
    assert_accurate(ours, torch.where(case.mask(), dense, 0))


WIDE = [
    ConvolutionCase(channels, 17, kernel, mask_type, groups, (13, 45), dilation)
    for (mask_type, groups), (channels, kernel, dilation) in product(
        MASKS, [(20, (3, 3), (2, 3)), (3, (5, 3), (3, 2)), (5, (5, 1), (4, 1))]
    )
]


@pytest.mark.instruction_sets
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_dilation_on_wide_images(case: ConvolutionCase, threads: int) -> None:
    """A row takes several register tiles, and an image several strips of rows, which threads share."""
    torch.set_num_threads(threads)
    assert_all_accurate(case.result(case.ours, F64), case.result(case.oracle, F64))


@pytest.mark.parametrize("needed", [subset for size in (1, 2, 3) for subset in combinations(range(3), size)], ids=str)
@pytest.mark.parametrize("channels", [3, 20])
def test_any_subset_of_gradients(channels: int, needed: tuple[int, ...]) -> None:
    case = ConvolutionCase(channels, 20)
    result = case.result(case.ours, F64)
    assert_all_accurate(result, case.result(case.oracle, F64))
    everything = list(result.values())[1:]
    leaves = [tensor.requires_grad_(i in needed) for i, tensor in enumerate(case.tensors(F64).values())]
    output = case.ours(*leaves)
    generator = torch.Generator().manual_seed(1)
    output.backward(torch.randn(output.shape, generator=generator).bfloat16().to(F64))
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in needed)
        assert leaf.grad is None or torch.equal(leaf.grad, everything[i])


GRADCHECK = [
    ConvolutionCase(2, 3, size=(3, 4), batch=1),
    ConvolutionCase(3, 4, (3, 5), "A", 3, (4, 3), (2, 1), batch=1, bias=False),
    ConvolutionCase(17, 2, (1, 3), "B", 2, (2, 4), batch=1),
    ConvolutionCase(2, 3, (3, 3), "vertical_A", 1, (4, 3), batch=1),
    ConvolutionCase(2, 3, (3, 5), "vertical_B", 1, (3, 4), (1, 2), batch=1),
]


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("case", GRADCHECK, ids=str)
def test_gradcheck(case: ConvolutionCase, check: Callable[..., bool], device: str) -> None:
    leaves = [tensor.to(device).requires_grad_() for tensor in case.tensors(F64).values()]
    assert check(case.ours, leaves, rtol=1e-6, atol=1e-8, fast_mode=check is torch.autograd.gradgradcheck)


def test_second_derivatives_where_a_first_one_is_not_needed(device: str) -> None:
    case = ConvolutionCase()
    results = []
    for convolution, on in ((case.ours, device), (case.oracle, "cpu")):
        input, weight, bias = (tensor.to(on) for tensor in case.tensors(F64).values())
        weight.requires_grad_()
        (first,) = torch.autograd.grad(convolution(input, weight, bias).square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        results.append({"first": first.detach(), "second": second})
    assert_all_accurate(*results)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize(
    "case",
    [
        ConvolutionCase(3, 64, (7, 7), "A", size=(13, 28), batch=3),
        ConvolutionCase(33, 100, (3, 3), "B", 3, size=(30, 9), batch=3),
        ConvolutionCase(64, 31, (1, 1), "B", size=(5, 5), batch=1),
        ConvolutionCase(20, 31, (3, 5), "vertical_B", size=(13, 9), batch=2),
    ],
    ids=str,
)
def test_same_bits_twice_and_on_any_number_of_threads(
    case: ConvolutionCase, layout: Layout, dtype: torch.dtype
) -> None:
    once = case.result(case.ours, dtype, layout)
    assert_all_accurate(once, case.result(case.oracle, F64), case.result(case.oracle, dtype))
    assert_identical(case.result(case.ours, dtype, layout), once)
    for threads in (2, 3, min(8, 2 * (os.cpu_count() or 1))):
        torch.set_num_threads(threads)
        assert_identical(case.result(case.ours, dtype, layout), once)


def test_same_bits_in_any_batch() -> None:
    case = ConvolutionCase(20, 40, size=(9, 31), batch=5)
    input, weight, bias = case.tensors(torch.float32).values()
    together = case.ours(input, weight, bias)
    exact = case.oracle(input.double(), weight.double(), bias.double())
    assert_accurate(together, exact, case.oracle(input, weight, bias))
    alone = torch.cat([case.ours(image, weight, bias) for image in input.split(1)])
    assert torch.equal(together, alone)
