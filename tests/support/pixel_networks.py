"""Networks that are evaluated pixel by pixel, and what they must compute."""

import math

import torch
from convolution_cases import FORMS, TAILS, ConvolutionCase
from torch import Tensor

from fused_rnn.functional.pixel_network import Kind, PixelNetwork, PixelState

# Sums of few and of many channels, one and several vectors of outputs, and images in one or several register tiles.
CASES = [
    case for case in [
        *FORMS, *TAILS,
        ConvolutionCase(1, 64, (7, 7), "A", size=(9, 11)), ConvolutionCase(20, 20, (5, 5), size=(4, 30), batch=15),
        ConvolutionCase(300, 300, (3, 3), size=(3, 4), batch=1),
        ConvolutionCase(128, 260, (1, 1), size=(2, 9), batch=1),
        ConvolutionCase(30, 60, (5, 5), "B", 3, size=(5, 6), batch=7),
        ConvolutionCase(size=(3, 4), dilation=(9, 9)),
    ]
    if case.mask_type != "vertical_B"  # which sees later pixels of a row
]  # fmt: skip
FEW_PIXELS = [case for case in CASES if case.batch * math.prod(case.size) <= 300]
"""Those for what takes long for each pixel."""


def network_of(case: ConvolutionCase, weight: Tensor, bias: Tensor | None = None) -> PixelNetwork:
    """Return the network of one convolution, whose input must be complete rows above if it is a vertical one."""
    network = PixelNetwork(case.data_channels)
    network.add_value(case.in_channels)
    network.add_convolution(0, weight, bias, *case.options, whole_row=case.mask_type == "vertical_A")
    return network


def stepped(network: PixelNetwork, input: Tensor, state_type: type[PixelState] = PixelState) -> Tensor:
    """Evaluate a network pixel by pixel for images that are given, and return its output for all pixels."""
    batch, _, height, width = input.shape
    state = state_type(network, batch, height, width)
    outputs = input.new_full((batch, network.channels[state.output], height, width), torch.nan)
    for step in range(state.steps):
        row, column = state.position(step)
        state.pixel(0, step)[:] = input[:, :, row, column]
        state.advance(1, outputs)
    return outputs


def vertical_network(dtype: torch.dtype) -> tuple[PixelNetwork, Tensor, Tensor]:
    """Return a network of type vertical_B behind vertical_A, images, and what it makes of them."""
    first, second = ConvolutionCase(1, 40, (3, 3), "vertical_A"), ConvolutionCase(40, 9, (3, 5), "vertical_B")
    input, weight, bias = first.tensors(dtype).values()
    _, next_weight, next_bias = second.tensors(dtype).values()
    network = network_of(first, weight, bias)
    network.add_convolution(1, next_weight, next_bias, *second.options, whole_row=True)
    return network, input, second.oracle(first.oracle(input, weight, bias), next_weight, next_bias)


def network_of_operations(channels: int, groups: int) -> tuple[PixelNetwork, Tensor, Tensor]:
    """Return sums, products, ReLU and gates of two convolutions in float64, images, and what torch makes of them."""
    batch, height, width = 3, 4, 5
    channels *= groups
    case = ConvolutionCase(groups, 2 * channels, (3, 3), "A", groups)
    _, weight, bias = case.tensors(torch.float64).values()
    input = torch.randn(batch, groups, height, width, dtype=torch.float64)
    weights, biases = (weight, -weight), (bias, bias.flip(0))
    condition = torch.randn(batch, 2 * channels, 1, 1, dtype=torch.float64)
    columns = torch.randn(batch, 2 * channels, 1, width).double()
    network = PixelNetwork(groups)
    network.add_value(groups)
    a, b = (network.add_convolution(0, w, v, *case.options) for w, v in zip(weights, biases, strict=True))
    given, wide = network.add_constant(condition), network.add_constant(columns)

    def add(kind: Kind, *inputs: int, channels: int = 2 * channels, details: tuple[int, ...] = ()) -> int:
        return network.add(kind, inputs, network.add_value(channels), details=details)

    total = add(Kind.ADD, add(Kind.MULTIPLY, a, given), add(Kind.RELU, add(Kind.ADD, b, wide)))
    add(Kind.GATE, total, channels=channels, details=(0, 0, groups))
    x, y = (case.oracle(input, w, v) for w, v in zip(weights, biases, strict=True))
    halves = (x * condition + torch.relu(y + columns)).unflatten(1, (groups, 2, -1))
    return network, input, (halves[:, :, 0].tanh() * halves[:, :, 1].sigmoid()).flatten(1, 2)


def network_of_copies() -> tuple[PixelNetwork, Tensor, Tensor]:
    """Return a network that divides and joins channels, images, and what it makes of them."""
    case = ConvolutionCase(1, 21, (3, 3), "A")
    input, weight, bias = case.tensors(torch.float64).values()
    network = network_of(case, weight, bias)
    output = network.add_value(30)
    for begin, at, count in ((5, 0, 16), (0, 16, 9), (20, 25, 1), (2, 26, 4)):
        network.add(Kind.COPY, (1,), output, details=(begin, at, count))
    whole = case.oracle(input, weight, bias)
    return network, input, torch.cat([whole[:, 5:21], whole[:, :9], whole[:, 20:21], whole[:, 2:6]], 1)
