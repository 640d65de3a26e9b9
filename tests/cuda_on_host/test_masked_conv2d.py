"""The kernels of masked convolution for Hopper on the CPU, against the oracle of convolution_cases.py in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from comparing import assert_accurate, assert_all_accurate, assert_identical
from convolution_cases import ConvolutionCase, as_made
from nan_in_images import check_nan_in_the_future, check_nan_in_the_gradient_of_the_past
from torch import Tensor

from cuda_on_host.build import build
from cuda_on_host.convolution import CASES, FIRST_LAYERS, Convolutions, OnHost, Tiles
from cuda_on_host.convolution_checks import (
    NAN_CASES,
    check_nan_in_the_input_of_a_weight_gradient,
    check_nan_in_what_is_seen,
    check_only_one_of_the_parameters,
    check_relu,
)

F64 = torch.float64
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def convolutions() -> Convolutions:
    return Convolutions(build())


def check(host: OnHost, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compare output and all gradients with the oracle, and return them."""
    case = host.case
    result, exact, peer = case.result(host, dtype), case.result(case.oracle, F64), case.result(case.oracle, dtype)
    if host.first_layer:
        for each in (result, exact, peer):
            del each["grad input"]
    assert_all_accurate(result, exact, peer, note=f" {case} {host.tiles} {host.gradient_tiles}")
    return result


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_chosen_tiles(convolutions: Convolutions, index: int, dtype: torch.dtype) -> None:
    convolutions.choose_schedule(index)
    check(OnHost(convolutions, CASES[index], multiprocessors=(132, 3)[index % 2], gap=8 * (index % 3)), dtype)


TILES = [Tiles(rows, groups) for groups in (1, 2) for rows in (32, 28, 16, 14, 8) if groups == 1 or rows >= 16]
GRADIENT_TILES = [Tiles(rows, groups) for groups in (1, 2) for rows in range(2, 18, 2)]


def test_these_are_the_tiles_that_are_built(convolutions: Convolutions) -> None:
    assert convolutions.built() == TILES


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("index", range(len(GRADIENT_TILES)))
def test_every_tile(convolutions: Convolutions, index: int, dtype: torch.dtype) -> None:
    for at in range((index + 2 * HALF.index(dtype)) % 4, len(CASES), 4):
        convolutions.choose_schedule(index + at)
        host = OnHost(
            convolutions, CASES[at], TILES[index % len(TILES)], GRADIENT_TILES[index],
            multiprocessors=(1, 5, 100)[at % 3], gap=8 * (at % 2), grad_channels_last=at % 4 > 1,
        )  # fmt: skip
        check(host, dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("index", range(len(FIRST_LAYERS)))
def test_first_layers(convolutions: Convolutions, index: int, dtype: torch.dtype) -> None:
    for contiguous in (False, True):
        convolutions.choose_schedule(2 * index + contiguous)
        host = OnHost(
            convolutions, FIRST_LAYERS[index], multiprocessors=1 + 2 * contiguous, gap=3 * contiguous,
            grad_channels_last=not contiguous, first_layer=True, contiguous=contiguous,
        )  # fmt: skip
        check(host, dtype)


@pytest.mark.parametrize("relu", [False, True])
def test_a_first_layer_with_many_output_channels(convolutions: Convolutions, relu: bool) -> None:
    """One that has no kernel for the gradients of its parameters."""
    case = ConvolutionCase(3, 312, (3, 3), "B", 3, size=(9, 8))
    host = OnHost(convolutions, case, first_layer=True, relu=relu)
    tensors, exact = case.tensors(torch.float16), case.oracle(*case.tensors(F64).values())
    peer = case.oracle(*tensors.values())
    assert_accurate(host.forward(**tensors), exact.relu() if relu else exact, peer.relu() if relu else peer)
    with pytest.raises(RuntimeError, match="there is no plan"):
        host.parameter_gradients(torch.zeros_like(peer), tensors["input"])


def test_only_one_of_the_parameters(convolutions: Convolutions) -> None:
    check_only_one_of_the_parameters(OnHost(convolutions, CASES[0]))


@pytest.mark.parametrize("index", [0, 4, 7])
def test_the_bits_are_always_the_same(convolutions: Convolutions, index: int) -> None:
    host = OnHost(convolutions, CASES[index], multiprocessors=7)
    results = []
    for schedule in range(4):
        convolutions.choose_schedule(schedule)
        results.append(check(host, torch.bfloat16))
    for result in results[1:]:
        assert_identical(result, results[0])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_relu(convolutions: Convolutions, dtype: torch.dtype) -> None:
    check_relu(OnHost(convolutions, CASES[0], relu=True), dtype)


@pytest.mark.parametrize("tiles", [Tiles(8, 1), Tiles(16, 2)])
@pytest.mark.parametrize("case", NAN_CASES, ids=str)
def test_nan_in_what_is_not_seen(
    convolutions: Convolutions, case: ConvolutionCase, tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConvolutionCase, "ours", lambda case, *tensors: OnHost(convolutions, case, tiles)(*tensors))
    check_nan_in_the_future(case, torch.float16, as_made, "cpu")
    check_nan_in_the_gradient_of_the_past(case, torch.float16, as_made, "cpu")


@pytest.mark.parametrize(
    "case",
    [
        ConvolutionCase(1, 8, (3, 3), "A", size=(4, 9)),
        ConvolutionCase(3, 72, (5, 5), "B", size=(4, 9)),
        ConvolutionCase(3, 24, (3, 3), "A", 3, size=(4, 9)),
        ConvolutionCase(6, 80, (1, 3), "B", 2, size=(4, 9), dilation=(1, 2)),
    ],
    ids=str,
)
def test_nan_in_what_a_first_layer_does_not_see(
    convolutions: Convolutions, case: ConvolutionCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = OnHost(convolutions, case, first_layer=True)
    monkeypatch.setattr(ConvolutionCase, "ours", lambda _, *tensors: host(*tensors))
    check_nan_in_the_future(case, torch.bfloat16, as_made, "cpu")


# No image is narrower than a tile of the kernels for boxes, whose weight gradient then has more NaN.
@pytest.mark.parametrize(
    "case",
    [
        ConvolutionCase(8, 16, (3, 3), "A", size=(9, 11)),
        ConvolutionCase(8, 16, (3, 5), "B", size=(3, 8)),
        ConvolutionCase(16, 8, (5, 5), "A", size=(17, 20), dilation=(1, 2)),
        ConvolutionCase(8, 8, (3, 3), "vertical_B", size=(1, 15)),
        ConvolutionCase(2, 8, (3, 3), "A", size=(9, 11)),
        ConvolutionCase(1, 8, (5, 3), "B", size=(3, 2)),
    ],
    ids=str,
)
def test_nan_in_the_input_of_a_weight_gradient(convolutions: Convolutions, case: ConvolutionCase) -> None:
    check_nan_in_the_input_of_a_weight_gradient(OnHost(convolutions, case, first_layer=case.in_channels < 8))


@pytest.mark.parametrize("relu", [False, True])
def test_nan_in_what_is_seen(convolutions: Convolutions, relu: bool) -> None:
    case = ConvolutionCase(8, 16, (3, 3), "B", size=(9, 11))
    check_nan_in_what_is_seen(OnHost(convolutions, case, relu=relu), relu)


RECTANGLES, BOXES = ["rectangles"] * 3, ["boxes"] * 3


@pytest.mark.parametrize(
    ("changes", "kernels", "reason"),
    [
        ({}, BOXES, None),
        ({"in_channels": 32, "out_channels": 64, "data_channels": 4}, BOXES, None),
        ({"out_channels": 16, "kernel_size": (1, 1), "data_channels": 2}, BOXES, None),
        (
            {"out_channels": 48, "data_channels": 3}, RECTANGLES,
            "the input channels of a group do not begin at a multiple of 8",
        ),
        (
            {"data_channels": 2}, RECTANGLES,
            "the output channels of a group do not begin at a multiple of 8",
        ),
        (
            {"in_channels": 20}, ["rectangles", "boxes", "rectangles"],
            "the number of input channels is not a multiple of 8",
        ),
        ({"out_channels": 20}, RECTANGLES, "the number of output channels is not a multiple of 8"),
        ({"kernel_size": (1, 1), "mask_type": "A"}, RECTANGLES, "no tap is active, or none for some channels"),
        (
            {"out_channels": 16, "kernel_size": (1, 1), "mask_type": "A", "data_channels": 2},
            RECTANGLES, "no tap is active, or none for some channels",
        ),
        ({"data_channels": 5}, RECTANGLES, "there are more than 4 groups of channels"),
        ({"batch": 0}, RECTANGLES, "the images are empty"),
        ({"kernel_size": (5, 5), "dilation": (100, 1)}, RECTANGLES, "the taps reach too far for shared memory"),
        ({"kernel_size": (5, 5), "dilation": (1, 100)}, RECTANGLES, "the taps reach too far for shared memory"),
        ({"size": (1 << 31, 1)}, RECTANGLES, "a size is too large"),
        (
            {"in_channels": 3}, ["first layer", "boxes", "first layer"],
            "the number of input channels is not a multiple of 8",
        ),
        ({"in_channels": 8}, ["first layer", "boxes", "first layer"], None),
        # Of 128 columns, the gradient needs one for the bias.
        ({"in_channels": 8, "kernel_size": (1, 31)}, ["first layer", "boxes", "boxes"], None),
        ({"in_channels": 8, "kernel_size": (1, 33)}, BOXES, None),
        (
            {"in_channels": 3, "out_channels": 200}, ["first layer", "boxes", "rectangles"],
            "the number of input channels is not a multiple of 8",
        ),
    ],
)  # fmt: skip
def test_which_kernels_serve(
    convolutions: Convolutions, changes: dict[str, Any], kernels: list[str], reason: str | None
) -> None:
    case = replace(ConvolutionCase(16, 8), **changes)
    assert convolutions.choice(OnHost(convolutions, case).params(Tiles())) == (kernels, reason)


@pytest.mark.parametrize("tiles", [Tiles(12, 1), Tiles(33, 2), Tiles(8, 2), Tiles(16, 3)])
def test_tiles_that_do_not_exist_are_an_error(convolutions: Convolutions, tiles: Tiles) -> None:
    host = OnHost(convolutions, CASES[0], tiles)
    with pytest.raises(RuntimeError, match=r"no plan with these tiles|no kernel is built for this plan"):
        host.forward(**CASES[0].tensors(torch.float16))
