"""The operator pixel_network: a masked convolution, pixel by pixel, is that of the whole image bit for bit."""

from typing import Any

import pytest
import torch
from comparing import assert_accurate
from convolution_cases import ConvolutionCase
from pixel_networks import CASES, network_of, network_of_copies, network_of_operations, stepped, vertical_network

from fused_rnn import ops
from fused_rnn.functional.pixel_network import PixelState
from fused_rnn.ops.pixel_network import encode

F64 = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_convolution_is_that_of_the_whole_image(case: ConvolutionCase, dtype: torch.dtype) -> None:
    input, weight, *bias = case.tensors(dtype).values()
    exact = case.oracle(*case.tensors(F64).values())
    whole = case.ours(input, weight, *bias)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output = stepped(network_of(case, weight, *bias), input)
        assert_accurate(output, exact, case.oracle(input, weight, *bias))
        assert torch.equal(output, whole)


def test_a_row_of_a_vertical_stack_sees_its_neighbours() -> None:
    """A convolution of type vertical_B reads values of the row that is being computed, left and right."""
    network, input, expected = vertical_network(F64)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for images in (input, input[:1]):
            assert_accurate(stepped(network, images), expected[: len(images)])


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 37])
@pytest.mark.parametrize("groups", [1, 3])
def test_other_operations(channels: int, groups: int) -> None:
    """Sums, products, ReLU and gates of two convolutions, beside torch's."""
    network, input, expected = network_of_operations(channels, groups)
    assert_accurate(stepped(network, input), expected)


def test_copies_divide_and_join_channels() -> None:
    network, input, expected = network_of_copies()
    assert_accurate(stepped(network, input), expected)


def test_nan_in_a_later_pixel_is_not_read() -> None:
    """Whatever a ring of rows still holds at later pixels must not be multiplied, not even by zero."""
    case = ConvolutionCase(2, 20, (5, 5), "A", size=(6, 7))
    input, weight, bias = case.tensors(torch.float32).values()
    state = PixelState(network_of(case, weight, bias), 2, *case.size)
    for step in range(state.steps):
        row, column = state.position(step)
        state.values[0][:, row % 3, 2 + column : 9] = torch.nan
        state.advance(1)
        assert torch.isfinite(state.pixel(1, step)).all()
        state.pixel(0, step)[:] = input[:, :, row, column]


def test_only_the_rows_that_are_read_again_are_kept() -> None:
    case = ConvolutionCase(3, 8, (7, 5), "A", dilation=(2, 1))
    state = PixelState(network_of(case, *list(case.tensors(torch.float32).values())[1:]), 2, 100, 50)
    assert [value.shape for value in state.values] == [(2, 7, 54, 3), (2, 1, 50, 8)]


def test_errors() -> None:
    case = ConvolutionCase(1, 4, (3, 3), "A")
    _, weight, bias = case.tensors(torch.float32).values()
    state = PixelState(network_of(case, weight, bias), 1, 2, 2)
    state.advance(4)
    with pytest.raises(ValueError, match="all 4 steps of the images have been computed"):
        state.advance(1)
    with pytest.raises(NotImplementedError, match="weights must be float32 or float64, got BFloat16"):
        PixelState(network_of(case, weight.bfloat16(), bias.bfloat16()), 1, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": [0] * 10}, "nodes must be 11 numbers each, got 10 numbers"),
        ({"groups": 0}, "groups must be positive, got 0"),
        ({"begin": 3, "end": 2}, "there are no steps from 3 to 2"),
        ({"values": []}, "values and parameters must not be empty"),
        ({"values": [torch.zeros(2, 2, 6, 1), torch.zeros(3, 1, 4, 4)]}, r"got \[3, 1, 4, 4\]"),
        ({"values": [torch.zeros(2, 2, 6, 1), torch.zeros(2, 1, 4, 4).double()]}, "values must have the dtype"),
        ({"values": [torch.zeros(2, 2, 6, 1), torch.zeros(2, 1, 4, 3)]}, "node 0 does not fit the channels"),
        ({"values": [torch.zeros(2, 2, 4, 1), torch.zeros(2, 1, 4, 4)]}, "node 0 does not fit .* the margins"),
        ({"values": [torch.zeros(2, 2, 6, 1)]}, "names a value that does not exist"),
        ({"parameters": [torch.zeros(4, 1, 3, 3)]}, "names a parameter that does not exist"),
        ({"parameters": [torch.zeros(4, 1, 2, 3), torch.zeros(4)]}, "a weight or a bias of another shape"),
        ({"packed": torch.zeros(5)}, "packed must be what pixel_network_pack returned"),
        ({"outputs": torch.zeros(2, 4, 2, 4)}, r"outputs must be contiguous, .* got \[2, 4, 2, 4\]"),
        ({"image": torch.zeros(2, 1, 3, 4)}, "image must be contiguous, int64"),
        ({"observed": torch.zeros(2, 3, 3) > 0}, "observed must be contiguous, boolean"),
        ({"uniforms": torch.zeros(2, 3, 4, 1, 1)}, "uniforms must be contiguous, float64"),
        ({"scaled": torch.zeros(4, 1)}, "scaled must have one number for each level"),
        ({"scaled": torch.zeros(5)}, "the distribution is unknown, or does not fit 4 outputs for 1 channels"),
        ({"distribution": 9}, "the distribution is unknown"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_operator_checks_for_itself(change: dict[str, Any], message: str) -> None:
    """Whoever calls it directly cannot make it read or write beyond a tensor."""
    network = network_of(ConvolutionCase(1, 4, (3, 3), "A"), torch.ones(4, 1, 3, 3), torch.zeros(4))
    nodes = encode(network.nodes)
    good: dict[str, Any] = {
        "values": [torch.zeros(2, 2, 6, 1), torch.zeros(2, 1, 4, 4)], "parameters": network.parameters,
        "packed": ops.pixel_network_pack(network.parameters, nodes, 1), "nodes": nodes, "groups": 1, "width": 4,
        "begin": 0, "end": 12, "image": torch.zeros(2, 1, 3, 4, dtype=torch.long), "observed": None,
        "uniforms": torch.zeros(2, 3, 4, 1, 1, dtype=F64), "scaled": torch.zeros(4), "outputs": None,
        "distribution": 1, "factor": 1.0, "offset": 0.0, "temperature": 1.0,
    }  # fmt: skip
    torch.ops.fused_rnn.pixel_network(**good)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fused_rnn.pixel_network(**{**good, **change})
