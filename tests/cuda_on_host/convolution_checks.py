"""What holds for all kernels of masked convolution, those for Hopper and those for single warps."""

import torch
from comparing import assert_accurate
from convolution_cases import ConvolutionCase

from cuda_on_host.convolution import OnHost

F64 = torch.float64
NAN_CASES = [
    ConvolutionCase(8, 16, (3, 3), "A", size=(4, 9)),
    ConvolutionCase(72, 16, (5, 5), "B", size=(4, 9)),
    ConvolutionCase(8, 16, (3, 3), "vertical_A", size=(4, 9), dilation=(1, 2)),
    ConvolutionCase(16, 16, (7, 3), "vertical_B", size=(4, 9)),
    ConvolutionCase(48, 72, (3, 3), "A", 3, size=(4, 9)),
    ConvolutionCase(24, 48, (3, 1), "B", 3, size=(4, 9)),
]


def check_only_one_of_the_parameters(host: OnHost) -> None:
    """Assert that a gradient has the same bits whether the other one is wanted, too, or not."""
    case = host.case
    input = case.tensors(torch.float16)["input"]
    grad = torch.randn(case.batch, case.out_channels, *case.size).half()
    both = host.parameter_gradients(grad, input)
    weight, no_bias = host.parameter_gradients(grad, input, wants_bias=False)
    no_weight, bias = host.parameter_gradients(grad, input, wants_weight=False)
    assert no_bias is None
    assert no_weight is None
    for alone, together in zip((weight, bias), both, strict=True):
        assert alone is not None
        assert together is not None
        assert torch.equal(alone, together)


def check_relu(host: OnHost, dtype: torch.dtype) -> None:
    """Assert that kernels which compute ReLU on the way are right."""
    case = host.case
    tensors, exact = case.tensors(dtype), case.oracle(*case.tensors(F64).values()).relu()
    assert_accurate(host.forward(**tensors), exact, case.oracle(*tensors.values()).relu())


def check_nan_in_the_input_of_a_weight_gradient(host: OnHost) -> None:
    """Assert that an entry is NaN if a factor of it is, and that a pixel that no tap sees changes nothing."""
    case = host.case
    grad = torch.randn(case.batch, case.out_channels, *case.size).bfloat16()
    for pixel in {(0, 0), (case.size[0] // 2, case.size[1] - 1), (case.size[0] - 1, case.size[1] - 1)}:
        input = case.tensors(torch.bfloat16)["input"]
        input[0, 0, pixel[0], pixel[1]] = float("nan")
        weight, bias = host.parameter_gradients(grad, input)
        assert weight is not None
        assert bias is not None
        assert torch.equal(weight[:, 0].isnan(), case.taps_that_see(pixel) & case.mask()[:, 0])
        assert not weight[:, 1:].isnan().any()
        assert not bias.isnan().any()


def check_nan_in_what_is_seen(host: OnHost, relu: bool) -> None:
    """Assert that a NaN reaches the outputs that see it, through ReLU as well, and no others."""
    case = host.case
    tensors, exact = case.tensors(torch.bfloat16), case.oracle(*case.tensors(F64).values())
    spoilt = torch.zeros_like(tensors["input"], dtype=F64)
    spoilt[0, 3, 2, 5] = 1
    seen = case.oracle(spoilt, torch.ones_like(tensors["weight"], dtype=F64)) > 0
    tensors["input"][spoilt > 0] = float("nan")
    exact = (exact.relu() if relu else exact).masked_fill(seen, float("nan"))
    assert_accurate(host.forward(**tensors), exact, exact.bfloat16())
