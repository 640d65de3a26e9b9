"""Masked convolutions step by step: each step is what the whole input gives, bit for bit."""

import pytest
import torch
from comparing import assert_accurate
from torch import Tensor

from fused_rnn import MaskedConv1d, MaskedConv2d
from fused_rnn.functional.pixel_network import PixelState

Layer = MaskedConv1d | MaskedConv2d


def steps_of(layer: Layer, state: PixelState, inputs: Tensor) -> Tensor:
    """Return all steps for inputs ``[batch, in_channels, steps]``."""
    outputs, before = [], None
    for step in range(inputs.size(2)):
        this = inputs[:, :, step]
        outputs.append(layer.step(this if layer.mask_type == "B" else before, state))
        before = this
    return torch.stack(outputs, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("mask_type", "groups"), [("A", 1), ("B", 1), ("B", 3), ("vertical_A", 1)])
@pytest.mark.parametrize("channels", [3, 20])
def test_images(mask_type: str, groups: int, channels: int, dtype: torch.dtype) -> None:
    layer = MaskedConv2d(channels, 21, (5, 3), mask_type, groups, dilation=(1, 2), dtype=dtype)
    images = torch.randn(2, channels, 6, 7, dtype=dtype)
    whole = layer(images)
    weight, bias = (parameter.double() for parameter in layer.parameters())
    exact = torch.nn.functional.conv2d(images.double(), weight, bias, padding=(2, 2), dilation=(1, 2))
    assert_accurate(whole, exact)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in (1, 2):
            stepped = steps_of(layer, layer.init_state(batch, 6, 7), images[:batch].flatten(2))
            assert torch.equal(stepped.view(batch, 21, 6, 7), whole[:batch])


@pytest.mark.parametrize("kernel_size", [1, 2, 5])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_time_steps(mask_type: str, kernel_size: int) -> None:
    layer = MaskedConv1d(4, 17, kernel_size, mask_type, dilation=3)
    sound = torch.randn(3, 4, 30)
    assert torch.equal(steps_of(layer, layer.init_state(3, 30), sound), layer(sound))


def test_errors() -> None:
    first, later = MaskedConv2d(2, 4, 3, "A"), MaskedConv2d(2, 4, 3, "B")
    with pytest.raises(ValueError, match="input is given, but a layer of type A takes the input of the step before"):
        first.step(torch.randn(1, 2), first.init_state(1, 2, 2))
    with pytest.raises(ValueError, match="input is missing, but a layer of type B takes the input of each step"):
        later.step(None, later.init_state(1, 2, 2))
    state = later.init_state(1, 1, 1)
    with pytest.raises(ValueError, match=r"input must have shape \[1, 2\], got \[2, 2\]"):
        later.step(torch.randn(2, 2), state)
    with pytest.raises(TypeError, match=r"input must be torch.float32, got torch.float64"):
        later.step(torch.randn(1, 2).double(), state)
    later.step(torch.randn(1, 2), state)
    with pytest.raises(ValueError, match="all 1 steps of the images have been computed"):
        later.step(torch.randn(1, 2), state)
    with pytest.raises(ValueError, match="height must be positive, got 0"):
        later.init_state(1, 0, 1)
    with pytest.raises(ValueError, match="type A with several groups of channels cannot step by itself"):
        MaskedConv2d(2, 4, 3, "A", 2).init_state(1, 2, 2)
    with pytest.raises(ValueError, match="type vertical_B cannot step by itself"):
        MaskedConv2d(2, 4, 3, "vertical_B").init_state(1, 2, 2)
    with pytest.raises(NotImplementedError, match="float32 or float64, got BFloat16"):
        MaskedConv1d(2, 4, 3, "B").bfloat16().init_state(1, 2)
