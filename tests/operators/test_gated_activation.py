"""The gated activation beside tanh and sigmoid of torch, with gradients of first and second order."""

import pytest
import torch
from comparing import assert_accurate, assert_all_accurate, differentiate
from convolution_cases import gated
from torch.autograd import gradcheck, gradgradcheck

from fused_rnn import GatedActivation
from fused_rnn.functional import gated_activation

F64 = torch.float64


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
    output, expected, other = gated_activation(input, groups), gated(exact, groups), gated(peer, groups)
    assert_accurate(output, expected, other)
    assert output.is_contiguous(memory_format=layout) or output.numel() == 0
    gradients = (differentiate([y], {"input": x}) for y, x in ((output, input), (expected, exact), (other, peer)))
    assert_all_accurate(*gradients)
    with torch.no_grad():
        assert torch.equal(gated_activation(input, groups), output)


def test_on_every_device(device: str) -> None:
    input = torch.randn(2, 12, 3, 5, dtype=F64)
    assert_accurate(GatedActivation(3).to(device)(input.to(device)), gated(input, 3))


def test_an_input_that_is_not_contiguous() -> None:
    input = torch.randn(4, 9, 8, 5, dtype=F64).permute(0, 2, 3, 1)[:, :, ::2]
    assert_accurate(gated_activation(input, 2), gated(input, 2))


def test_higher_gradients_and_transforms() -> None:
    input = torch.randn(2, 12, 2, 3, dtype=F64, requires_grad=True)
    assert gradcheck(lambda x: gated_activation(x, 3), input)
    assert gradgradcheck(lambda x: gated_activation(x, 3), input)
    batched = torch.randn(4, 2, 12, 2, 3, dtype=F64)
    expected = torch.stack([gated(one, 3) for one in batched])
    assert_accurate(torch.vmap(lambda one: gated_activation(one, 3))(batched), expected)
    tangent = torch.randn_like(input)
    ours, theirs = (
        torch.func.jvp(lambda x, f=function: f(x, 3), (input.detach(),), (tangent,))[1]
        for function in (gated_activation, gated)
    )
    assert_accurate(ours, theirs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("shape", "groups"), [((3, 12, 5, 7), 3), ((0, 4, 3, 3), 1), ((2, 0, 3, 3), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(
    dtype: torch.dtype, shape: tuple[int, ...], groups: int, layout: torch.memory_format, device: str
) -> None:
    input = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)
    operators = torch.ops.fused_rnn
    torch.library.opcheck(operators.gated_activation.default, (input, groups))
    grad = torch.randn_like(operators.gated_activation(input, groups))
    torch.library.opcheck(operators.gated_activation_backward.default, (grad, input, groups))


def test_many_gradients_at_once() -> None:
    input = torch.randn(2, 4, 3, 3, dtype=F64, requires_grad=True)
    output, grads = gated_activation(input), torch.randn(5, 2, 2, 3, 3, dtype=F64)
    (together,) = torch.autograd.grad(output, input, grads, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(output, input, grad, retain_graph=True)[0] for grad in grads]
    assert_accurate(together, torch.stack(alone))


def test_extreme_values() -> None:
    numbers = [0.0, -0.0, 1e-30, 40.0, -200.0, torch.inf, -torch.inf]
    a, b = torch.cartesian_prod(torch.tensor(numbers), torch.tensor(numbers)).T
    input = torch.cat([a, b]).view(1, -1, 1, 1)
    assert_accurate(gated_activation(input), gated(input.double(), 1))
    spoiled = gated_activation(torch.tensor([torch.nan, 1.0, 1.0, 1.0]).view(1, 4, 1, 1))
    assert spoiled.isnan().flatten().tolist() == [True, False]


def test_compile() -> None:
    input = torch.randn(2, 8, 3, 3)
    compiled = torch.compile(GatedActivation(2), fullgraph=True)
    assert_accurate(compiled(input), gated(input.double(), 2), gated(input, 2))


def test_errors() -> None:
    with pytest.raises(ValueError, match="input must have 4 dimensions"):
        gated_activation(torch.randn(4, 3, 3))
    with pytest.raises(
        ValueError, match="must be a multiple of 2 \\* data_channels, got 10 channels and data_channels=3"
    ):
        gated_activation(torch.randn(1, 10, 3, 3), 3)
    with pytest.raises(ValueError, match="data_channels must be positive, got 0"):
        GatedActivation(0)
    operator = torch.ops.fused_rnn.gated_activation_backward
    for grad, words in (
        (torch.randn(1, 2, 3, 2), r"Expected grad_output of size \[1, 2, 3, 3\]"),
        (torch.randn(1, 2, 3, 3).double(), "Input type .* and grad_output type .* should be the same"),
        (torch.randn(1, 2, 3, 3, device="meta"), "input is on cpu, but grad_output is on meta"),
    ):
        with pytest.raises(RuntimeError, match=words):
            operator(grad, torch.randn(1, 4, 3, 3), 1)
        if grad.is_cpu:  # the same error where only shapes are computed
            with pytest.raises(RuntimeError, match=words):
                operator(grad.to("meta"), torch.randn(1, 4, 3, 3, device="meta"), 1)
    with pytest.raises(NotImplementedError, match="input must be float32, float64, bfloat16 or float16, got Long"):
        gated_activation(torch.ones(1, 2, 3, 3, dtype=torch.long))


def test_repr() -> None:
    assert repr(GatedActivation()) == "GatedActivation()"
    assert repr(GatedActivation(3)) == "GatedActivation(data_channels=3)"
