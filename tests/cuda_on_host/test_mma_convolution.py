"""Masked convolution as a GPU without Hopper's warpgroup instructions computes it, from the operators down."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from comparing import assert_all_accurate, assert_identical
from convolution_cases import ConvolutionCase, Layout, as_made, channels_last
from nan_in_images import check_nan_in_the_future, check_nan_in_the_gradient_of_the_past
from on_gpu import float32_precision

F64 = torch.float64
HALF = (torch.bfloat16, torch.float16)
CASES = [
    ConvolutionCase(8, 8),
    ConvolutionCase(72, 136, (3, 3), "B", size=(5, 9)),
    ConvolutionCase(136, 72, (3, 5), "A", size=(9, 3), batch=1, bias=False),
    ConvolutionCase(8, 16, (3, 3), "vertical_A", size=(6, 7)),
    ConvolutionCase(16, 8, (3, 3), "B", size=(9, 10), dilation=(2, 3)),
    ConvolutionCase(24, 48, (3, 3), "A", 3, size=(6, 10)),
    ConvolutionCase(32, 64, (1, 1), "B", 4),
    ConvolutionCase(16, 24, (3, 3), "B", size=(6, 7), activation="relu"),
    ConvolutionCase(16, 24, (3, 3), "B", size=(6, 7), activation="relu", residual=True),
    ConvolutionCase(16, 32, (3, 3), "B", size=(6, 7), activation="gated", residual=True),
]
# Channels for which the kernels have no chunks, so that PyTorch's convolutions serve them.
UNALIGNED = [ConvolutionCase(1, 8, (5, 5), "A"), ConvolutionCase(8, 16, (1, 1), "B", 4)]


@pytest.fixture(autouse=True)
def _glue(convolution_glue: None, operators: Any) -> Iterator[None]:
    operators.set_hopper(False)
    yield
    operators.set_hopper(True)


@pytest.fixture(params=["ieee", "tf32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether convolutions of float32 may be rounded to tf32."""
    with float32_precision(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", CASES + UNALIGNED, ids=str)
def test_equals_the_oracle(case: ConvolutionCase, dtype: torch.dtype) -> None:
    exact, peer = case.result(case.oracle, F64), case.result(case.oracle, dtype)
    assert_all_accurate(case.result(case.ours, dtype, channels_last), exact, peer)


@pytest.mark.parametrize("case", CASES + UNALIGNED, ids=str)
def test_float32(case: ConvolutionCase, precision: str) -> None:
    """Values have so few bits that rounding to tf32 changes none, but for the gradient of a gate."""
    if case.activation == "gated" and precision == "tf32":
        case = replace(case, activation="relu")
    exact, peer = case.result(case.oracle, F64), case.result(case.oracle, torch.float32)
    assert_all_accurate(case.result(case.ours, torch.float32, channels_last), exact, peer)


def test_float32_is_rounded_only_if_it_may_be(precision: str) -> None:
    case = ConvolutionCase(16, 8, (3, 3), "B")
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in case.tensors(F64).items()}
    output, exact = case.ours(**tensors), case.oracle(**{name: tensor.double() for name, tensor in tensors.items()})
    error = ((output.double() - exact).abs().max() / exact.abs().max()).item()
    assert (error > 2**-16) == (precision == "tf32"), error


@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("grad_layout", [as_made, channels_last])
def test_layouts(layout: Layout, grad_layout: Layout) -> None:
    case = ConvolutionCase(16, 24, size=(9, 11))
    made = case.result(case.ours, torch.bfloat16)
    assert_identical(case.result(case.ours, torch.bfloat16, layout, grad_layout, layout), made)


@pytest.mark.parametrize("case", [CASES[5], ConvolutionCase(16, 24, (5, 5), "A", size=(4, 9))], ids=str)
def test_nan_in_what_is_not_seen(case: ConvolutionCase) -> None:
    check_nan_in_the_future(case, torch.bfloat16, channels_last, "cpu")
    check_nan_in_the_gradient_of_the_past(case, torch.bfloat16, channels_last, "cpu")
