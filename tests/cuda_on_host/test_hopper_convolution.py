"""Masked convolution in half precision as a GPU of compute capability 9.0 computes it, from the operators down."""

import pytest
import torch
from comparing import assert_all_accurate, assert_identical
from convolution_cases import ConvolutionCase, Layout, as_made, channels_last
from nan_in_images import check_nan_in_the_future, check_nan_in_the_gradient_of_the_past

F64 = torch.float64
HALF = (torch.bfloat16, torch.float16)

CASES = [
    ConvolutionCase(8, 8),
    ConvolutionCase(16, 24, (5, 5), "A", size=(9, 11), batch=3),
    ConvolutionCase(72, 136, (3, 3), "B", size=(5, 9)),
    ConvolutionCase(136, 72, (3, 5), "A", size=(9, 3), batch=1),
    ConvolutionCase(16, 16, (7, 7), "B", size=(15, 8), bias=False),
    ConvolutionCase(8, 16, (9, 9), "B", size=(4, 17)),
    ConvolutionCase(16, 8, (1, 5), "B", size=(3, 20)),
    ConvolutionCase(8, 8, (5, 1), "B", size=(20, 3)),
    ConvolutionCase(8, 8, (1, 1), "B"),
    ConvolutionCase(8, 16, (3, 3), "vertical_A", size=(6, 7)),
    ConvolutionCase(8, 16, (3, 5), "vertical_B", size=(6, 7)),
    ConvolutionCase(16, 8, (3, 3), "B", size=(9, 10), dilation=(2, 3)),
    ConvolutionCase(24, 24, (3, 3), "A", 3, size=(6, 10)),
    ConvolutionCase(24, 24, (3, 3), "B", 3, size=(6, 10)),
    ConvolutionCase(144, 72, (3, 3), "A", 3, size=(3, 14)),
    ConvolutionCase(80, 144, (3, 5), "B", 2, size=(3, 14)),
    ConvolutionCase(32, 64, (1, 1), "B", 4),
    ConvolutionCase(32, 224, (1, 3), "A", 4),
    ConvolutionCase(1, 8, (7, 7), "A", size=(9, 10)),
    ConvolutionCase(1, 72, (5, 5), "B", size=(17, 19), bias=False),
    ConvolutionCase(3, 144, (7, 7), "A", 3, size=(8, 7)),
    ConvolutionCase(3, 24, (3, 3), "B", 3, size=(6, 8), dilation=(2, 1)),
    ConvolutionCase(5, 24, (3, 3), "vertical_A"),
    ConvolutionCase(15, 8, (3, 3), "B"),
    ConvolutionCase(12, 264, (3, 3), "A"),
]
# Groups of channels that begin where no box can begin, so that PyTorch's convolutions serve them.
UNALIGNED = [
    ConvolutionCase(136, 72, (3, 3), "A", 3, size=(3, 14)),
    ConvolutionCase(8, 16, (1, 1), "B", 4),
    ConvolutionCase(3, 136, (7, 7), "A", 3, size=(8, 7)),
]


pytestmark = pytest.mark.usefixtures("convolution_glue")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", CASES + UNALIGNED, ids=str)
def test_equals_the_oracle(case: ConvolutionCase, dtype: torch.dtype) -> None:
    exact, peer = case.result(case.oracle, F64), case.result(case.oracle, dtype)
    assert_all_accurate(case.result(case.ours, dtype, channels_last), exact, peer)


@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("grad_layout", [as_made, channels_last])
@pytest.mark.parametrize("in_channels", [3, 16])
def test_layouts(layout: Layout, grad_layout: Layout, in_channels: int) -> None:
    case = ConvolutionCase(in_channels, 24, size=(9, 11))
    made = case.result(case.ours, torch.bfloat16)
    assert_identical(case.result(case.ours, torch.bfloat16, layout, grad_layout, layout), made)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.bias and case.size[0] * case.size[1] > 35],
    ids=str,
)
def test_nan_in_what_is_not_seen(case: ConvolutionCase) -> None:
    check_nan_in_the_future(case, torch.bfloat16, channels_last, "cpu")
    check_nan_in_the_gradient_of_the_past(case, torch.bfloat16, channels_last, "cpu")
