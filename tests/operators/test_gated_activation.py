"""The gated activation beside tanh and sigmoid of torch, with gradients of first and second order."""

import pytest
import torch
from comparing import assert_accurate, assert_all_accurate, differentiate
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fused_rnn import GatedActivation
from fused_rnn.functional import gated_activation

F64 = torch.float64


def oracle(input: Tensor, groups: int) -> Tensor:
    """Compute the gate channel by channel."""
    channels = input.size(1) // 2
    half = channels // groups
    firsts = [2 * half * (channel // half) + channel % half for channel in range(channels)]
    return input[:, firsts].tanh() * input[:, [first + half for first in firsts]].sigmoid()


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("shape", "groups"), [
    ((2, 2, 1, 1), 1), ((3, 12, 5, 7), 1), ((3, 12, 5, 7), 3), ((2, 66, 4, 5), 3), ((1, 130, 3, 3), 1),
    ((0, 4, 3, 3), 1), ((2, 0, 3, 3), 1), ((4, 128, 17, 19), 2),
])  # fmt: skip
def test_values_and_gradients(
    shape: tuple[int, ...], groups: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.set_num_threads(2)
    exact = (3 * torch.randn(shape)).to(dtype).to(F64).contiguous(memory_format=layout).requires_grad_()
    input, peer = (exact.detach().to(dtype).requires_grad_() for _ in range(2))
    output, expected, other = gated_activation(input, groups), oracle(exact, groups), oracle(peer, groups)
    assert_accurate(output, expected, other)
    assert output.is_contiguous(memory_format=layout) or output.numel() == 0
    gradients = (differentiate([y], {"input": x}) for y, x in ((output, input), (expected, exact), (other, peer)))
    assert_all_accurate(*gradients)
    with torch.no_grad():
        assert torch.equal(gated_activation(input, groups), output)


def test_on_every_device(device: str) -> None:
    input = torch.randn(2, 12, 3, 5, dtype=F64)
    assert_accurate(GatedActivation(3).to(device)(input.to(device)), oracle(input, 3))


def test_an_input_that_is_not_contiguous() -> None:
    input = torch.randn(4, 9, 8, 5, dtype=F64).permute(0, 2, 3, 1)[:, :, ::2]
    assert_accurate(gated_activation(input, 2), oracle(input, 2))


def test_higher_gradients_and_transforms() -> None:
    input = torch.randn(2, 12, 2, 3, dtype=F64, requires_grad=True)
    assert gradcheck(lambda x: gated_activation(x, 3), input)
    assert gradgradcheck(lambda x: gated_activation(x, 3), input)
    batched = torch.randn(4, 2, 12, 2, 3, dtype=F64)
    expected = torch.stack([oracle(one, 3) for one in batched])
    assert_accurate(torch.vmap(lambda one: gated_activation(one, 3))(batched), expected)
    tangent = torch.randn_like(input)
    ours, theirs = (
        torch.func.jvp(lambda x, f=function: f(x, 3), (input.detach(),), (tangent,))[1]
        for function in (gated_activation, oracle)
    )
    assert_accurate(ours, theirs)


def test_extreme_values() -> None:
    numbers = [0.0, -0.0, 1e-30, 40.0, -200.0, torch.inf, -torch.inf]
    a, b = torch.cartesian_prod(torch.tensor(numbers), torch.tensor(numbers)).T
    input = torch.cat([a, b]).view(1, -1, 1, 1)
    assert_accurate(gated_activation(input), oracle(input.double(), 1))
    spoiled = gated_activation(torch.tensor([torch.nan, 1.0, 1.0, 1.0]).view(1, 4, 1, 1))
    assert spoiled.isnan().flatten().tolist() == [True, False]


def test_compile() -> None:
    input = torch.randn(2, 8, 3, 3)
    compiled = torch.compile(GatedActivation(2), fullgraph=True)
    assert_accurate(compiled(input), oracle(input.double(), 2), oracle(input, 2))


def test_errors() -> None:
    with pytest.raises(ValueError, match="input must have 4 dimensions"):
        gated_activation(torch.randn(4, 3, 3))
    with pytest.raises(
        ValueError, match="must be a multiple of 2 \\* data_channels, got 10 channels and data_channels=3"
    ):
        gated_activation(torch.randn(1, 10, 3, 3), 3)
    with pytest.raises(ValueError, match="data_channels must be positive, got 0"):
        GatedActivation(0)
    with pytest.raises(NotImplementedError, match="input must be float32, float64, bfloat16 or float16, got Long"):
        gated_activation(torch.ones(1, 2, 3, 3, dtype=torch.long))


def test_repr() -> None:
    assert repr(GatedActivation()) == "GatedActivation()"
    assert repr(GatedActivation(3)) == "GatedActivation(data_channels=3)"
