"""MaskedConv1d compared with conv1d of a padded input and a masked weight in float64; what it sees; its errors."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from comparing import assert_all_accurate, assert_identical, differentiate
from torch import Tensor, randn
from torch.nn.functional import conv1d, pad

from fused_rnn import MaskedConv1d, functional, reference
from fused_rnn.reference.masked_conv1d import mask

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """A causal convolution and the sequences for it."""

    in_channels: int = 4
    out_channels: int = 6
    taps: int = 3
    mask_type: str = "B"
    data_channels: int = 1
    dilation: int = 1
    time: int = 11
    batch: int = 2

    @property
    def options(self) -> tuple[str, int, int]:
        return self.mask_type, self.data_channels, self.dilation

    def mask(self) -> Tensor:
        """Return the mask, computed from its definition entry by entry."""
        active = torch.ones(self.out_channels, self.in_channels, self.taps, dtype=torch.bool)
        for o, c in product(range(self.out_channels), range(self.in_channels)):
            out_group, in_group = (
                channel * self.data_channels // channels
                for channel, channels in ((o, self.out_channels), (c, self.in_channels))
            )
            active[o, c, -1] = in_group < out_group or (self.mask_type == "B" and in_group == out_group)
        return active

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return input, weight and bias, with values that are exact in bfloat16."""
        shapes = {
            "input": (self.batch, self.in_channels, self.time),
            "weight": (self.out_channels, self.in_channels, self.taps),
            "bias": (self.out_channels,),
        }
        generator = torch.Generator().manual_seed(0)
        return {name: randn(shape, generator=generator).bfloat16().to(dtype) for name, shape in shapes.items()}

    def ours(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.masked_conv1d(input, weight, bias, *self.options)

    def oracle(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        past = (self.taps - 1) * self.dilation
        return conv1d(pad(input, (past, 0)), weight * self.mask(), bias, dilation=self.dilation)

    def result(self, convolution: Callable[..., Tensor], dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        leaves = {name: tensor.to(device).requires_grad_() for name, tensor in self.tensors(dtype).items()}
        output = convolution(**leaves)
        return {"output": output.detach(), **differentiate([output], leaves)}


CASES = [
    Case(taps=taps, mask_type=mask_type, data_channels=groups, dilation=dilation)
    for (taps, dilation), mask_type, groups in product([(1, 1), (2, 1), (3, 4), (4, 3), (2, 64)], "AB", (1, 3))
] + [
    Case(1, 32, 2, "A", time=200),
    Case(32, 33, 2, "B", dilation=8, time=301),
    Case(20, 17, 5, "B", 2, 3, 40, batch=3),
    Case(6, 6, 3, "B", time=1, batch=1),
    Case(batch=0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64(case: Case, device: str) -> None:
    assert_all_accurate(case.result(case.ours, F64, device), case.result(case.oracle, F64))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case: Case) -> None:
    assert torch.equal(
        mask(case.out_channels, case.in_channels, case.taps, case.mask_type, case.data_channels), case.mask()
    )
    input, weight, bias = case.tensors(F64).values()
    output = reference.masked_conv1d(input, weight, bias, *case.options)
    assert torch.equal(output, case.oracle(input, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES[::6] + CASES[-4:], ids=str)
def test_other_dtypes(case: Case, dtype: torch.dtype, device: str) -> None:
    exact, peer = case.result(case.oracle, F64), case.result(case.oracle, dtype)
    assert_all_accurate(case.result(case.ours, dtype, device), exact, peer)


@pytest.mark.parametrize(("mask_type", "groups"), [("A", 1), ("A", 3), ("B", 1), ("B", 3)])
def test_nan_in_the_future_and_in_masked_weights(mask_type: str, groups: int) -> None:
    case = Case(6, 9, 3, mask_type, groups, dilation=2)
    input, weight, bias = case.tensors(F64).values()
    clean = case.ours(input, weight, bias)
    spoilt_weight = weight.masked_fill(~case.mask(), float("nan"))
    for step in range(case.time):
        spoilt = input.clone()
        spoilt[..., step + 1 :] = float("nan")
        # The channels of a step that its first group of outputs must not see.
        spoilt[:, (0 if mask_type == "A" else 6 // groups) :, step] = float("nan")
        output = case.ours(spoilt, spoilt_weight, bias)
        assert torch.equal(output[..., :step], clean[..., :step])
        assert torch.equal(output[:, : 9 // groups, step], clean[:, : 9 // groups, step])


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("case", [Case(2, 3, 2, time=5), Case(3, 4, 3, "A", 3, 2, time=6)], ids=str)
def test_gradcheck(case: Case, check: Callable[..., bool], device: str) -> None:
    leaves = [tensor.to(device).requires_grad_() for tensor in case.tensors(F64).values()]
    assert check(case.ours, leaves, rtol=1e-6, atol=1e-8, fast_mode=check is torch.autograd.gradgradcheck)


def test_state_dict_and_values_of_a_padded_conv1d() -> None:
    dense, layer = torch.nn.Conv1d(3, 8, 4, dilation=2, dtype=F64), MaskedConv1d(3, 8, 4, "B", dilation=2, dtype=F64)
    layer.load_state_dict(dense.state_dict())
    input = randn(2, 3, 20, dtype=F64)
    results = [{"output": module(images)} for module, images in ((layer, input), (dense, pad(input, (6, 0))))]
    assert_all_accurate(*results)


def test_unbatched_autocast_and_strided() -> None:
    layer, input = MaskedConv1d(3, 8, 2, "A", dilation=(2,)), randn(2, 3, 9)
    assert torch.equal(layer(input[0]), layer(input)[0])
    assert torch.equal(layer(input.transpose(1, 2).contiguous().transpose(1, 2)), layer(input))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(input).dtype == torch.bfloat16


def test_model_sees_exactly_the_past() -> None:
    """A stack of layers with doubled dilation, as in WaveNet, sees its whole receptive field and nothing else."""
    model = torch.nn.Sequential(
        MaskedConv1d(1, 8, 2, "A", dtype=F64), torch.nn.Tanh(),
        MaskedConv1d(8, 8, 2, "B", dilation=2, dtype=F64), torch.nn.Tanh(),
        MaskedConv1d(8, 1, 2, "B", dilation=4, dtype=F64),
    )  # fmt: skip
    time = 16
    jacobian = torch.autograd.functional.jacobian(model, randn(1, 1, time, dtype=F64))[0, 0, :, 0, 0]
    past = torch.arange(time).view(-1, 1) - torch.arange(time)
    # Type A sees the step before; the taps of the other layers 0 or 2, and 0 or 4 steps earlier.
    seen = torch.stack([past == 1 + a + b for a in (0, 2) for b in (0, 4)]).any(0)
    assert torch.equal(jacobian != 0, seen)


@pytest.mark.parametrize(("mask_type", "groups", "taps"), [("A", 1, 2), ("B", 1, 3), ("A", 2, 3), ("B", 2, 3)])
def test_initialisation_and_mask(mask_type: str, groups: int, taps: int) -> None:
    layer = MaskedConv1d(4, 32, 3, mask_type, groups)
    assert torch.equal(layer.mask, Case(4, 32, 3, mask_type, groups).mask())
    assert torch.equal(layer.weight != 0, layer.mask)
    bound = (4 * taps) ** -0.5
    assert 0.9 * bound < layer.weight.abs().max() <= bound


def test_same_bits_with_two_threads() -> None:
    case = Case(20, 33, 3, dilation=2, time=150, batch=3)
    once = case.result(case.ours, torch.float32)
    torch.set_num_threads(2)
    assert_identical(case.result(case.ours, torch.float32), once)


def test_repr() -> None:
    assert repr(MaskedConv1d(1, 2, 3, "B")) == "MaskedConv1d(1, 2, kernel_size=(3,), mask_type='B')"
    text = "MaskedConv1d(2, 4, kernel_size=(2,), mask_type='A', data_channels=2, dilation=(4,), bias=False)"
    assert repr(MaskedConv1d(2, 4, 2, "A", 2, bias=False, dilation=4)) == text


CONSTRUCTOR: list[tuple[dict[str, Any], str]] = [
    ({"mask_type": "vertical_A"}, "mask_type must be 'A' or 'B', got 'vertical_A'"),
    ({"kernel_size": 0}, "kernel_size must be a positive number, got 0"),
    ({"kernel_size": (3, 3)}, "kernel_size must be a positive number"),
    ({"dilation": 0}, "dilation must be a positive number"),
    ({"data_channels": 5}, "data_channels .* must not exceed .* in_channels=4"),
]


@pytest.mark.parametrize(("changed", "words"), CONSTRUCTOR, ids=str)
def test_constructor_errors(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskedConv1d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, "mask_type": "A", **changed})


run = functional.masked_conv1d
Call = Callable[[Tensor, Tensor, Tensor], Any]
ERRORS: dict[str, tuple[type[Exception], str, Call]] = {
    "mask_type": (ValueError, "mask_type must be 'A' or 'B'", lambda x, w, b: run(x, w, b, "vertical_B")),
    "no taps": (ValueError, "kernel_size must be positive", lambda x, w, b: run(x, w[..., :0], b)),
    "groups": (ValueError, "must not exceed in_channels", lambda x, w, b: run(x, w, b, "A", 4)),
    "1-D input": (RuntimeError, r"Expected 2D \(unbatched\) or 3D", lambda x, w, b: run(x[0, 0], w, b)),
    "4-D input": (RuntimeError, r"Expected 2D \(unbatched\) or 3D", lambda x, w, b: run(x[None], w, b)),
    "4-D weight": (RuntimeError, "Expected 3D weight", lambda x, w, b: run(x, w[None], b)),
    "channels": (RuntimeError, "to have 3 channels, but got 2 channels", lambda x, w, b: run(x[:, :2], w, b)),
    "no steps": (RuntimeError, "to have time steps", lambda x, w, b: run(x[..., :0], w, b)),
    "bias": (RuntimeError, "bias to be 1-dimensional with 4 elements", lambda x, w, b: run(x, w, b[:3])),
    "dilation": (RuntimeError, "non-positive dilation", lambda x, w, b: run(x, w, b, "A", 1, 0)),
    "dilations": (RuntimeError, "expected dilation to be a single", lambda x, w, b: run(x, w, b, "A", 1, (1, 2))),  # type: ignore[arg-type]
    "dtype": (RuntimeError, "not the same dtype", lambda x, w, b: run(x.double(), w, b)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    exception, words, call = ERRORS[name]
    with pytest.raises(exception, match=words):
        call(randn(2, 3, 5), randn(4, 3, 2), randn(4))
