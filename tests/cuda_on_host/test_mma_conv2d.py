"""The kernels of masked convolution for single warps on the CPU, against the oracle of convolution_cases.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from comparing import assert_all_accurate, assert_identical
from convolution_cases import ConvolutionCase, as_made
from nan_in_images import check_nan_in_the_future, check_nan_in_the_gradient_of_the_past
from torch import Tensor

from cuda_on_host.build import build
from cuda_on_host.convolution import CASES, CHOSEN, Convolutions, OnHost, Tiles
from cuda_on_host.convolution_checks import (
    NAN_CASES,
    check_nan_in_the_input_of_a_weight_gradient,
    check_nan_in_what_is_seen,
    check_only_one_of_the_parameters,
    check_relu,
)
from cuda_on_host.tf32 import round_to_tf32

F64 = torch.float64
HALF = (torch.bfloat16, torch.float16)
DTYPES = (*HALF, torch.float32)
TILES = (CHOSEN, Tiles(channel_groups=1), Tiles(channel_groups=2))
MORE = [
    # Images of fewer pixels than a stage has, of one, and a row of more than a tile has.
    ConvolutionCase(8, 8, (3, 3), "B", size=(2, 3), batch=7),
    ConvolutionCase(16, 8, (3, 5), "A", size=(1, 1), batch=3),
    ConvolutionCase(8, 16, (3, 3), "B", size=(3, 150), batch=1, dilation=(1, 5)),
    ConvolutionCase(136, 200, (1, 1), "B", size=(4, 4)),
    ConvolutionCase(32, 64, (1, 1), "B", 4, size=(5, 7)),
]
# In float32 a chunk has four channels.
FOURS = [
    ConvolutionCase(4, 12, (3, 3), "B", size=(5, 6)),
    ConvolutionCase(20, 132, (3, 3), "A", size=(9, 11)),
    ConvolutionCase(132, 68, (3, 1), "vertical_B", size=(6, 5), dilation=(2, 1)),
    ConvolutionCase(12, 24, (3, 3), "A", 3, size=(5, 6)),
    ConvolutionCase(60, 84, (3, 3), "B", 3, size=(5, 6)),
]


@pytest.fixture(scope="module")
def convolutions() -> Convolutions:
    return Convolutions(build())


def check(host: OnHost, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compare output and all gradients with the oracle, and return them."""
    case = host.case
    # The kernels sum in one chain, PyTorch on a CPU in many. In a long sum of float32 that may be more than twice the
    # rounding errors; float16 has as many bits of mantissa as tf32 has.
    is_long = case.out_channels * math.prod(case.kernel_size) > 4000
    like = torch.float16 if is_long and dtype == torch.float32 else dtype
    result, exact, peer = case.result(host, dtype), case.result(case.oracle, F64), case.result(case.oracle, like)
    if dtype == torch.float32:  # for which there are no kernels for the gradients of parameters
        result, exact, peer = ({key: each[key] for key in ("output", "grad input")} for each in (result, exact, peer))
    assert_all_accurate(result, exact, peer, note=f" {case} {host.tiles} {host.gradient_tiles}")
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(CASES + MORE)))
def test_every_tile(convolutions: Convolutions, index: int, dtype: torch.dtype) -> None:
    case = (CASES + MORE)[index]
    for number, tiles in enumerate(TILES):
        convolutions.choose_schedule(index + number)
        host = OnHost(
            convolutions, case, tiles, TILES[(number + index) % 3], multiprocessors=(108, 1, 3)[(number + index) % 3],
            gap=8 * (number % 2), grad_channels_last=number == 1, mma=True,
        )  # fmt: skip
        check(host, dtype)


@pytest.mark.parametrize("case", FOURS, ids=str)
def test_float32_with_channels_in_fours(convolutions: Convolutions, case: ConvolutionCase) -> None:
    for number, tiles in enumerate(TILES):
        convolutions.choose_schedule(number)
        check(OnHost(convolutions, case, tiles, gap=4 * (number % 2), mma=True), torch.float32)


@pytest.mark.parametrize("tiles", TILES[1:])
def test_float32_is_rounded_to_tf32(convolutions: Convolutions, tiles: Tiles) -> None:
    """What is multiplied has 10 bits of mantissa, rounded to the nearest, and is summed in float32."""
    case = ConvolutionCase(24, 72, (3, 3), "B", size=(7, 9))
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in case.tensors(F64).items()}
    grad = torch.randn(case.batch, case.out_channels, *case.size, generator=generator)
    rounded = {name: tensor if name == "bias" else round_to_tf32(tensor) for name, tensor in tensors.items()}

    def results(tensors: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
        leaf = tensors["input"].clone().requires_grad_()
        output = case.oracle(leaf, tensors["weight"], tensors["bias"])
        return {"output": output.detach(), "grad input": torch.autograd.grad(output, leaf, grad)[0]}

    host = OnHost(convolutions, case, tiles, mma=True)
    ours = {"output": host.forward(**tensors), "grad input": host.input_gradient(grad, tensors["weight"])}
    exact = results({name: tensor.double() for name, tensor in rounded.items()}, round_to_tf32(grad).double())
    assert_all_accurate(ours, exact, results(rounded, round_to_tf32(grad)))


def test_only_one_of_the_parameters(convolutions: Convolutions) -> None:
    check_only_one_of_the_parameters(OnHost(convolutions, CASES[0], mma=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", [0, 11])
def test_the_bits_are_always_the_same(convolutions: Convolutions, index: int, dtype: torch.dtype) -> None:
    host = OnHost(convolutions, CASES[index], multiprocessors=7, mma=True)
    results = []
    for schedule in range(4):
        convolutions.choose_schedule(schedule)
        results.append(check(host, dtype))
    for result in results[1:]:
        assert_identical(result, results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu(convolutions: Convolutions, dtype: torch.dtype) -> None:
    check_relu(OnHost(convolutions, CASES[0], relu=True, mma=True), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", NAN_CASES, ids=str)
def test_nan_in_what_is_not_seen(
    convolutions: Convolutions, case: ConvolutionCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = TILES[1 + NAN_CASES.index(case) % 2]
    host = OnHost(convolutions, case, tiles, mma=True)
    monkeypatch.setattr(ConvolutionCase, "ours", lambda _, *tensors: host(*tensors))
    check_nan_in_the_future(case, dtype, as_made, "cpu")
    check_nan_in_the_gradient_of_the_past(case, dtype, as_made, "cpu")


@pytest.mark.parametrize(
    "case",
    [
        ConvolutionCase(8, 16, (3, 3), "A", size=(9, 11)),
        ConvolutionCase(16, 8, (5, 5), "B", size=(17, 20), dilation=(1, 2)),
        ConvolutionCase(8, 8, (3, 5), "vertical_B", size=(3, 2)),
    ],
    ids=str,
)
def test_nan_in_the_input_of_a_weight_gradient(convolutions: Convolutions, case: ConvolutionCase) -> None:
    check_nan_in_the_input_of_a_weight_gradient(OnHost(convolutions, case, mma=True))


@pytest.mark.parametrize("relu", [False, True])
def test_nan_in_what_is_seen(convolutions: Convolutions, relu: bool) -> None:
    case = ConvolutionCase(8, 16, (3, 3), "B", size=(9, 11))
    check_nan_in_what_is_seen(OnHost(convolutions, case, relu=relu, mma=True), relu)


RECTANGLES, MMA = ["rectangles"] * 3, ["mma"] * 3
NOT_FOR_PARAMETERS = "the kernels for gradients of parameters are for bfloat16 and float16"


@pytest.mark.parametrize(
    ("changes", "element_bytes", "kernels", "reason"),
    [
        ({}, 2, MMA, None),
        ({}, 4, ["mma", "mma", "rectangles"], NOT_FOR_PARAMETERS),
        ({"in_channels": 20, "out_channels": 12}, 4, ["mma", "mma", "rectangles"], NOT_FOR_PARAMETERS),
        ({"in_channels": 20}, 2, RECTANGLES, "the number of input channels is not a multiple of 8"),
        ({"out_channels": 20}, 2, RECTANGLES, "the number of output channels is not a multiple of 8"),
        ({"in_channels": 18}, 4, RECTANGLES, "the number of input channels is not a multiple of 4"),
        ({"out_channels": 18}, 4, RECTANGLES, "the number of output channels is not a multiple of 4"),
        ({"in_channels": 32, "out_channels": 64, "data_channels": 4}, 2, MMA, None),
        ({"data_channels": 2}, 2, RECTANGLES, "the channels of a group do not begin at a multiple of 8"),
        ({"data_channels": 2}, 4, ["mma", "mma", "rectangles"], NOT_FOR_PARAMETERS),
        ({"data_channels": 3}, 4, RECTANGLES, "the channels of a group do not begin at a multiple of 4"),
        ({"data_channels": 5}, 2, RECTANGLES, "there are more than 4 groups of channels"),
        ({"kernel_size": (1, 1), "mask_type": "A"}, 2, RECTANGLES, "no tap is active, or none for some channels"),
        ({"batch": 0}, 2, RECTANGLES, "the images are empty"),
        ({"kernel_size": (5, 5), "dilation": (100, 100)}, 2, MMA, None),
        ({"size": (1 << 31, 1)}, 2, RECTANGLES, "a size is too large"),
        ({"dilation": (1 << 15, 1)}, 2, RECTANGLES, "the taps reach too far"),
    ],
)  # fmt: skip
def test_which_kernels_serve(
    convolutions: Convolutions, changes: dict[str, Any], element_bytes: int, kernels: list[str], reason: str | None
) -> None:
    params = OnHost(convolutions, replace(ConvolutionCase(16, 8), **changes), mma=True).params(CHOSEN)
    params.element_bytes = element_bytes
    assert convolutions.choice(params) == (kernels, reason)


def test_where_there_is_no_gpu(convolutions: Convolutions) -> None:
    params = OnHost(convolutions, CASES[0], multiprocessors=0, mma=True).params(CHOSEN)
    assert convolutions.choice(params) == (RECTANGLES, "there is no such GPU")


def test_float32_on_hopper(convolutions: Convolutions) -> None:
    params = OnHost(convolutions, CASES[0]).params(CHOSEN)
    params.element_bytes = 4
    assert convolutions.choice(params) == (RECTANGLES, "the kernels for Hopper are for bfloat16 and float16")


@pytest.mark.parametrize(
    ("case", "multiprocessors", "forward", "parameters"),
    [
        (ConvolutionCase(64, 64, (7, 7), size=(28, 28), batch=16), 108, 64, 64),
        (ConvolutionCase(128, 128, (3, 3), size=(32, 32), batch=64), 108, 128, 128),
        (ConvolutionCase(128, 192, (3, 3), size=(32, 32), batch=64), 84, 64, 128),
        # So few tiles that narrow ones keep more multiprocessors busy.
        (ConvolutionCase(128, 128, (3, 3), size=(8, 8), batch=2), 108, 64, 64),
    ],
)
def test_tiles_that_are_chosen(
    convolutions: Convolutions, case: ConvolutionCase, multiprocessors: int, forward: int, parameters: int
) -> None:
    params = OnHost(convolutions, case, multiprocessors=multiprocessors, mma=True).params(CHOSEN)
    assert convolutions.chosen_mma_channels(params) == (forward, parameters)
