"""Masked convolution over rectangles of active taps, as a GPU computes it, and the gated activation, on the CPU."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from comparing import assert_accurate, assert_all_accurate, assert_identical, assert_little_noise
from convolution_cases import FORMS, FUSED, MASKS, TAILS, ConvolutionCase, Layout, as_made, channels_last
from nan_in_images import NAN_CASES, check_nan_in_the_future, check_nan_in_the_gradient_of_the_past
from torch import Tensor

from fused_rnn import ops, reference

F64 = torch.float64
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _glue(convolution_glue: None) -> Iterator[None]:
    """Let memory be NaN at first."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("case", FORMS + TAILS, ids=str)
def test_float64(case: ConvolutionCase, layout: Layout) -> None:
    assert_all_accurate(case.result(case.ours, F64, layout, layout), case.result(case.oracle, F64))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("case", FORMS[::5] + TAILS, ids=str)
def test_other_dtypes(case: ConvolutionCase, dtype: torch.dtype) -> None:
    exact, peer = case.result(case.oracle, F64), case.result(case.oracle, dtype)
    assert_all_accurate(case.result(case.ours, dtype, channels_last), exact, peer)


@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("case", FUSED, ids=str)
def test_activations_and_residuals(case: ConvolutionCase, layout: Layout) -> None:
    assert_all_accurate(case.result(case.ours, F64, layout, layout), case.result(case.oracle, F64))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("mask_type", "groups"), [*MASKS, ("B", 16)])
def test_half_precision_is_rounded_rarely(mask_type: str, groups: int, dtype: torch.dtype) -> None:
    """Each rectangle is rounded, and their sum, but not what is added in between."""
    case = ConvolutionCase(48, 48, (3, 3), mask_type, groups, size=(12, 12))
    exact, peer = case.result(case.oracle, F64), case.result(case.oracle, dtype)
    assert_little_noise(case.result(case.ours, dtype), exact, peer)


@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("case", NAN_CASES, ids=str)
def test_nan_in_what_is_not_seen(case: ConvolutionCase, layout: Layout) -> None:
    check_nan_in_the_future(case, F64, layout, "cpu")
    check_nan_in_the_gradient_of_the_past(case, F64, layout, "cpu")


def strided(images: Tensor) -> Tensor:
    """Return the same images with gaps between the values in memory."""
    return torch.stack([images, images], -1)[..., 1]


@pytest.mark.parametrize("grad_layout", [channels_last, strided])
@pytest.mark.parametrize("layout", [channels_last, strided])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 20])
def test_layouts(channels: int, dtype: torch.dtype, layout: Layout, grad_layout: Layout) -> None:
    case = ConvolutionCase(channels, 17, (5, 5), size=(6, 7))
    assert_identical(case.result(case.ours, dtype, layout, grad_layout, layout), case.result(case.ours, dtype))


@pytest.mark.parametrize("size", [(5, 6), (1, 1), (1, 6)])
@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
def test_memory_format_is_that_of_conv2d(mask_type: str, groups: int, in_channels: int, size: tuple[int, int]) -> None:
    case = ConvolutionCase(max(in_channels, groups), mask_type=mask_type, data_channels=groups, size=size)
    input, weight, bias = case.tensors(torch.float32).values()
    for image_layout, weight_layout in product([as_made, channels_last], repeat=2):
        given, kernel = image_layout(input), weight_layout(weight)
        expected = torch.nn.functional.conv2d(given, kernel, bias, padding=1)
        assert case.ours(given, kernel, bias).stride() == expected.stride()
        gradients = ops.masked_conv2d_backward(expected, given, kernel, *case.options, True, True, True)
        shapes = torch.ops.fused_rnn.masked_conv2d_backward(
            *(tensor.to("meta") for tensor in (expected, given, kernel)), *case.options, True, True, True
        )
        assert [gradient.stride() for gradient in gradients] == [shape.stride() for shape in shapes]


@pytest.mark.parametrize("case", [
    ConvolutionCase(batch=0), ConvolutionCase(0), ConvolutionCase(kernel_size=(1, 1), mask_type="A"),
    ConvolutionCase(kernel_size=(1, 5), mask_type="vertical_A"),
], ids=str)  # fmt: skip
def test_nothing_to_sum(case: ConvolutionCase) -> None:
    result = case.result(case.ours, F64)
    bias = case.tensors(F64)["bias"].view(1, -1, 1, 1)
    assert torch.equal(result["output"], bias.expand(case.batch, 6, *case.size))
    assert not result["grad weight"].any()
    assert not result["grad input"].any()
    assert result["grad input"].shape == (case.batch, case.in_channels, *case.size)


@pytest.mark.parametrize("dilation", [(5, 6), (2**62, 1), (2**63 - 1, 2**63 - 1)], ids=str)
def test_dilation_beyond_the_image(dilation: tuple[int, int]) -> None:
    """Taps that meet no pixel are left out, and do not make the padding overflow."""
    far = ConvolutionCase(kernel_size=(5, 5), dilation=dilation)
    near = ConvolutionCase(kernel_size=(5, 5), dilation=(min(dilation[0], 5), min(dilation[1], 6)))
    assert_all_accurate(far.result(far.ours, F64), near.result(near.oracle, F64))


@pytest.mark.parametrize("needed", list(product([False, True], repeat=3)), ids=str)
def test_what_is_wanted(needed: tuple[bool, bool, bool]) -> None:
    case = ConvolutionCase(data_channels=2)
    input, weight, _ = case.tensors(F64).values()
    grad = torch.randn(case.batch, case.out_channels, *case.size, dtype=F64)
    everything = ops.masked_conv2d_backward(grad, input, weight, *case.options, True, True, True)
    some = ops.masked_conv2d_backward(grad, input, weight, *case.options, *needed)
    for wanted, gradient, expected in zip(needed, some, everything, strict=True):
        assert torch.equal(gradient, expected) if wanted else gradient.shape == (0,)


def test_autocast_touches_nothing() -> None:
    """The operators compute in the dtype of their tensors, also while autocast would change that of a convolution."""
    case = ConvolutionCase()
    input, weight, bias = case.tensors(torch.float32).values()
    expected = ops.masked_conv2d(input, weight, bias, *case.options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.masked_conv2d(input, weight, bias, *case.options), expected)


@pytest.mark.parametrize("dtype", [F64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize(("shape", "groups"), [((3, 12, 5, 7), 1), ((3, 12, 5, 7), 3), ((0, 4, 3, 3), 1)])
def test_gated_activation(
    shape: tuple[int, ...], groups: int, layout: Layout, dtype: torch.dtype, operators: Any
) -> None:
    input = layout(torch.randn(shape).to(dtype))
    before = input.clone()
    output = operators.gated_activation(input, groups)
    expected = reference.gated_activation(input.double(), groups)
    assert_accurate(output, expected, reference.gated_activation(input, groups))
    assert torch.equal(input, before)
    assert output.stride() == torch.ops.fused_rnn.gated_activation(input.to("meta"), groups).stride()
    grad = layout(torch.randn(output.shape).to(dtype))
    gradient = operators.gated_activation_backward(grad, input, groups)
    leaves = [tensor.clone().requires_grad_() for tensor in (input.double(), input)]
    exact, peer = (
        torch.autograd.grad(reference.gated_activation(leaf, groups), leaf, grad.to(leaf))[0] for leaf in leaves
    )
    assert_accurate(gradient, exact, peer)
    meta = torch.ops.fused_rnn.gated_activation_backward(grad.to("meta"), input.to("meta"), groups)
    assert gradient.stride() == meta.stride()
