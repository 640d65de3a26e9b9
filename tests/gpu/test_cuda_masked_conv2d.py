"""Masked convolution on a GPU: what only a GPU has. The tests with the fixture ``device`` run there as well."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from comparing import assert_accurate, assert_all_accurate, assert_identical
from convolution_cases import MASKS, ConvolutionCase, channels_last
from nan_in_images import NAN_CASES, check_nan_in_the_future, check_nan_in_the_gradient_of_the_past
from on_gpu import captured, float32_precision
from torch import Tensor

import fused_rnn
from fused_rnn import _C

pytestmark = pytest.mark.needs_cuda

F64 = torch.float64
HALF = (torch.bfloat16, torch.float16)
WIDE = [ConvolutionCase(48, 96, (5, 5), mask_type, groups, (24, 20), batch=8) for mask_type, groups in MASKS]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_deterministic(case: ConvolutionCase, dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (case.result(case.ours, dtype, channels_last, device="cuda") for _ in range(3))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert_identical(other, first)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_tf32_is_that_of_convolutions(case: ConvolutionCase, precision: str) -> None:
    """``torch.backends.cudnn.conv`` decides, and ``torch.backends.cuda.matmul`` is not asked."""
    matmul: Any = torch.backends.cuda.matmul
    with float32_precision(precision):
        matmul.fp32_precision = "ieee" if precision == "tf32" else "tf32"
        ours = case.result(case.ours, torch.float32, channels_last, device="cuda")
    # float16 has as many bits of mantissa as tf32.
    peer = case.result(case.oracle, torch.float16 if precision == "tf32" else torch.float32)
    assert_all_accurate(ours, case.result(case.oracle, F64), peer)


@pytest.fixture
def mma() -> Iterator[None]:
    """Let the kernels for single warps compute masked convolutions, also where there are those for Hopper."""
    _C.set_convolution_path("mma")
    yield
    _C.set_convolution_path("any")


# Tails in channels and pixels, a kernel beyond the image, a dilation, and tiles of 64 and of 128 channels.
TAILS = [
    ConvolutionCase(72, 136, (3, 3), "B", size=(11, 13)),
    ConvolutionCase(64, 8, (5, 3), "vertical_A", size=(6, 19), dilation=(2, 1)),
    ConvolutionCase(8, 264, (7, 5), "A", size=(3, 2), batch=3),
    ConvolutionCase(128, 128, (3, 3), "B", size=(32, 32), batch=8),
    ConvolutionCase(160, 96, (3, 5), "A", 4, size=(3, 14)),
]


@pytest.mark.usefixtures("mma")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", WIDE + TAILS, ids=str)
def test_single_warps(case: ConvolutionCase, dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        ours, again = (case.result(case.ours, dtype, channels_last, device="cuda") for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_identical(again, ours)
    assert_all_accurate(ours, case.result(case.oracle, F64), case.result(case.oracle, dtype))


@pytest.mark.usefixtures("mma")
@pytest.mark.parametrize("case", WIDE + TAILS, ids=str)
def test_single_warps_with_tf32(case: ConvolutionCase) -> None:
    with float32_precision("tf32"):
        ours = case.result(case.ours, torch.float32, channels_last, device="cuda")
    assert_all_accurate(ours, case.result(case.oracle, F64), case.result(case.oracle, torch.float16))


@pytest.mark.usefixtures("mma")
@pytest.mark.parametrize("case", NAN_CASES[::3], ids=str)
def test_single_warps_do_not_see_nan(case: ConvolutionCase) -> None:
    case = replace(case, in_channels=24, out_channels=48)
    check_nan_in_the_future(case, torch.bfloat16, channels_last, "cuda")
    check_nan_in_the_gradient_of_the_past(case, torch.bfloat16, channels_last, "cuda")


def layer_on_gpu() -> tuple[fused_rnn.MaskedConv2d, Tensor]:
    layer = fused_rnn.MaskedConv2d(32, 64, 5, "B", device="cuda", dtype=torch.bfloat16)
    return layer, channels_last(torch.randn(4, 32, 16, 16, device="cuda", dtype=torch.bfloat16))


def test_graph_capture() -> None:
    layer, input = layer_on_gpu()
    other = torch.randn_like(input)

    def both() -> list[Tensor]:
        output = layer(input)
        return [output, *torch.autograd.grad(output.sum(), list(layer.parameters()))]

    graph, replayed = captured(both)
    input.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    names = ("output", "weight", "bias")
    double = copy.deepcopy(layer).cpu().double()
    output = double(input.cpu().double())
    exact = [output, *torch.autograd.grad(output.sum(), list(double.parameters()))]
    assert_all_accurate(*(dict(zip(names, results, strict=True)) for results in (replayed, exact, both())))


def test_streams() -> None:
    layer, input = layer_on_gpu()
    expected = layer(input)
    streams = [torch.cuda.Stream() for _ in range(2)]
    outputs = []
    for stream in streams * 4:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs.append(layer(input))
    torch.cuda.synchronize()
    assert all(torch.equal(output, expected) for output in outputs)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_and_gradient_scaler(dtype: torch.dtype) -> None:
    layer = fused_rnn.MaskedConv2d(8, 16, 3, "B", device="cuda")
    input = torch.randn(2, 8, 9, 9, device="cuda")
    with torch.autocast("cuda", dtype):
        output = layer(input)
    assert output.dtype == dtype
    assert torch.equal(output, copy.deepcopy(layer).to(dtype)(input.to(dtype)))
    scaler, optimizer = torch.amp.GradScaler("cuda", init_scale=2.0**8), torch.optim.SGD(layer.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    scaler.scale(output.float().sum()).backward()
    gradients = [parameter.grad / 2**8 for parameter in layer.parameters() if parameter.grad is not None]
    scaler.step(optimizer)
    for old, new, gradient in zip(before, layer.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.1 * gradient)
    assert torch.equal(layer.weight != 0, layer.mask)


def test_images_of_more_than_2_to_the_31_numbers() -> None:
    """Its first and last images are those of a small batch."""
    batch = 2**17 + 3
    layer = fused_rnn.MaskedConv2d(1, 1, 3, "B", device="cuda", dtype=torch.bfloat16)
    input = torch.randn(batch, 1, 128, 128, device="cuda", dtype=torch.bfloat16)
    assert input.numel() > 2**31
    with torch.no_grad():
        output = layer(input)
        some = [0, 1, batch // 2, batch - 2, batch - 1]
        exact, peer = (
            copy.deepcopy(layer).cpu().to(dtype)(input[some].cpu().to(dtype)) for dtype in (F64, torch.bfloat16)
        )
    assert_accurate(output[some], exact, peer)
