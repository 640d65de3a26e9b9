"""Properties of masked convolutions: an output depends on all allowed pixels, and on no other, even if it is NaN."""

from itertools import product

import pytest
import torch
from convolution_cases import MASKS, VERTICAL, ConvolutionCase, Layout, as_made, channels_last
from nan_in_images import NAN_CASES, check_nan_in_the_future, check_nan_in_the_gradient_of_the_past
from torch import Tensor

from fused_rnn import MaskedConv2d

F64 = torch.float64
KERNELS = [((3, 3), (1, 1)), ((5, 3), (1, 1)), ((1, 5), (1, 1)), ((3, 3), (2, 1))]


def stack(groups: int, kernel: tuple[int, int], dilation: tuple[int, int], width: int = 12) -> torch.nn.Sequential:
    """Return an autoregressive model: a first layer of type A, then layers of type B, with an output per channel."""

    def layer(inputs: int, outputs: int, size: tuple[int, int], mask_type: str) -> MaskedConv2d:
        return MaskedConv2d(inputs, outputs, size, mask_type, groups, dilation=dilation, dtype=F64)

    return torch.nn.Sequential(
        layer(groups, width, kernel, "A"), torch.nn.Tanh(),
        layer(width, width, kernel, "B"), torch.nn.Tanh(),
        layer(width, width, (1, 1), "B"), torch.nn.Tanh(),
        layer(width, groups, kernel, "B"),
    )  # fmt: skip


def dependencies(model: torch.nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
    """Return which inputs each output depends on, ``[outputs, inputs]``, both as (row, column, channel)."""
    found = torch.zeros(1, dtype=torch.bool)
    for _ in range(3):
        input = torch.randn(1, channels, *size, dtype=F64)
        jacobian = torch.autograd.functional.jacobian(model, input)[0, :, :, :, 0]
        values = jacobian.permute(1, 2, 0, 4, 5, 3).reshape(channels * size[0] * size[1], -1)
        found = found | (values != 0)
    return found


def allowed(channels: int, size: tuple[int, int]) -> Tensor:
    """Return the inputs before each output in raster order, with the channels of a pixel in order, too."""
    count = channels * size[0] * size[1]
    return torch.ones(count, count, dtype=torch.bool).tril(-1)


@pytest.mark.parametrize("width", [12, 64])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("kernel", "dilation"), KERNELS, ids=str)
def test_no_leak(kernel: tuple[int, int], dilation: tuple[int, int], groups: int, width: int) -> None:
    size = (4, 5)
    assert not (dependencies(stack(groups, kernel, dilation, width), groups, size) & ~allowed(groups, size)).any()


@pytest.mark.parametrize(("kernel", "dilation"), KERNELS, ids=str)
def test_no_leak_in_a_vertical_stack(kernel: tuple[int, int], dilation: tuple[int, int]) -> None:
    """The vertical stack of a Gated PixelCNN sees the rows above, and in a deep enough one all of them."""
    height, width = size = (4, 5)

    def layer(inputs: int, outputs: int, mask_type: str) -> MaskedConv2d:
        return MaskedConv2d(inputs, outputs, kernel, mask_type, dilation=dilation, dtype=F64)

    model = torch.nn.Sequential(
        layer(1, 12, "vertical_A"), torch.nn.Tanh(),
        layer(12, 12, "vertical_B"), torch.nn.Tanh(),
        layer(12, 12, "vertical_B"), torch.nn.Tanh(),
        layer(12, 1, "vertical_B"),
    )  # fmt: skip
    rows = torch.arange(height * width) // width
    above = rows.view(-1, 1) > rows
    found = dependencies(model, 1, size)
    assert not (found & ~above).any()
    assert torch.equal(found, above) == (kernel[0] > 1 and dilation == (1, 1))


@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
@pytest.mark.parametrize(("kernel", "dilation"), KERNELS, ids=str)
def test_one_layer_is_complete(kernel: tuple[int, int], dilation: tuple[int, int], groups: int, mask_type: str) -> None:
    height, width = size = (5, 6)
    layer = MaskedConv2d(groups, groups, kernel, mask_type, groups, dilation=dilation, dtype=F64)
    expected = torch.zeros(height, width, groups, height, width, groups, dtype=torch.bool)
    for i, j, y, x in product(range(height), range(width), range(kernel[0]), range(kernel[1])):
        row, column = i + (y - kernel[0] // 2) * dilation[0], j + (x - kernel[1] // 2) * dilation[1]
        if not (0 <= row < height and 0 <= column < width):
            continue
        if mask_type in VERTICAL:
            expected[i, j, :, row, column] |= row < i or (mask_type == "vertical_B" and row == i)
            continue
        if (row, column) > (i, j):
            continue
        inside = torch.ones(groups, groups, dtype=torch.bool)
        is_centre = (row, column) == (i, j)
        expected[i, j, :, row, column] |= inside.tril(0 if mask_type == "B" else -1) if is_centre else inside
    assert torch.equal(dependencies(layer, groups, size), expected.view(height * width * groups, -1))


@pytest.mark.parametrize("groups", [1, 3])
def test_model_is_complete(groups: int) -> None:
    """In a deep enough model the last pixel depends on all pixels before it."""
    size = (3, 3)
    found = dependencies(stack(groups, (3, 3), (1, 1)), groups, size)
    last = found[-groups:].view(groups, 9, groups)
    assert last[:, :8].all()
    assert torch.equal(last[:, 8], torch.ones(groups, groups, dtype=torch.bool).tril(-1))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("case", NAN_CASES, ids=str)
def test_nan_in_the_future(case: ConvolutionCase, dtype: torch.dtype, layout: Layout, device: str) -> None:
    check_nan_in_the_future(case, dtype, layout, device)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("layout", [as_made, channels_last])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("case", NAN_CASES, ids=str)
def test_nan_in_the_gradient_of_the_past(
    case: ConvolutionCase, dtype: torch.dtype, layout: Layout, device: str
) -> None:
    check_nan_in_the_gradient_of_the_past(case, dtype, layout, device)


def test_nan_in_masked_weights_is_not_used() -> None:
    case = ConvolutionCase(6, 9, (5, 5), "A", 3)
    leaves = case.tensors(F64)
    clean = case.result(case.ours, F64)
    weight = leaves["weight"].masked_fill(~case.mask(), float("nan"))
    assert torch.equal(case.ours(leaves["input"], weight, leaves["bias"]), clean["output"])


def test_nan_and_inf_in_weights_flow() -> None:
    case = ConvolutionCase()
    input, weight, bias = case.tensors(F64).values()
    weight[2, 1, 0, 0], weight[3, 0, 1, 1] = float("nan"), float("inf")
    output = case.ours(input, weight, bias)
    assert output[:, 2, 1:, 1:].isnan().all()
    assert not output[:, 3].isfinite().any()
    assert output[:, [0, 1, 4, 5]].isfinite().all()
