"""convert replaces masked convolutions of other packages whose mask and results are ours, and keeps all others."""

import copy
import io
import pickle
from abc import ABC
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import assert_all_accurate, assert_identical, differentiate
from convolution_cases import MASKS, ConvolutionCase
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.nn.utils import parametrizations, prune

import fused_rnn

F64 = torch.float64


class Masking(nn.Conv2d):
    """The most common form: each call writes zeros to the weight."""

    mask: Tensor

    def __init__(self, mask: Tensor, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("mask", mask.float())

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Multiplying(Masking):
    """The weight is not changed."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Logging(ABC, Masking):
    """A class with several bases, which has another memory layout, and with methods of its own for what we override."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(input, weight * self.mask, bias, self.stride, self.padding, self.dilation)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.loaded = True


class Padding(Masking):
    """The padding is in forward, and there are attributes whose names MaskedConv2d has, too."""

    mask_type = "own"
    data_channels = 7
    activation = "own"

    def forward(self, *args: Tensor) -> Tensor:
        sides = [size // 2 * distance for size, distance in zip(self.kernel_size, self.dilation, strict=True)]
        return conv2d(
            pad(args[0], (sides[1], sides[1], sides[0], sides[0])), self.weight * self.mask, self.bias,
            dilation=self.dilation,
        )  # fmt: skip


def foreign(
    cls: type[Masking] = Masking,
    mask_type: str = "A",
    data_channels: int = 1,
    mask: Tensor | None = None,
    **options: Any,
) -> Masking:
    """Return another package's convolution of 3 to 6 channels with a kernel of 5 x 3."""
    if mask is None:
        mask = ConvolutionCase(3, 6, (5, 3), mask_type, data_channels).mask()
    options = {"padding": 0 if cls is Padding else (2, 1), "dtype": F64, **options}
    return cls(mask, 3, 6, (5, 3), **options)


def run(module: nn.Module) -> dict[str, Tensor]:
    """Return the output and all gradients."""
    input = torch.randn(2, 3, 9, 8, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    output = module(input)
    leaves = {"input": input, **dict(module.named_parameters())}
    return {"output": output.detach(), **differentiate([output], leaves)}


@pytest.mark.parametrize("cls", [Masking, Multiplying, Padding, Logging])
@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
def test_there_and_back(mask_type: str, groups: int, cls: type[Masking]) -> None:
    module = foreign(cls, mask_type, groups)
    before = run(module)
    if cls is Masking:  # its forward changes the weight behind the back of autograd, which gives it a gradient
        before["grad weight"] *= module.mask
    tensors = dict(module.state_dict(keep_vars=True))
    report = fused_rnn.convert(module)
    name = f"test_convert_masked_conv2d.{cls.__name__}"
    assert str(report).endswith(f"(the model itself): {name} -> {name} on fused_rnn.MaskedConv2d")
    assert isinstance(module, cls)
    assert isinstance(module, fused_rnn.MaskedConv2d)
    assert (module.mask_type, module.data_channels) == (mask_type, groups)
    assert dict(module.state_dict(keep_vars=True)).items() == tensors.items()  # the same objects
    assert not module.weight[~module.mask].any()
    assert_all_accurate(run(module), before)
    report = fused_rnn.revert(module)
    assert str(report).endswith(f"{name} on fused_rnn.MaskedConv2d -> {name}")
    assert type(module) is cls
    assert torch.equal(run(module)["output"], before["output"])
    if cls is Padding:
        assert (module.mask_type, module.data_channels) == ("own", 7)


@pytest.mark.parametrize(
    ("options", "own_mask"),
    [
        ({"bias": False}, None),
        ({"padding": "same"}, None),
        ({"padding": (4, 3), "dilation": (2, 3)}, None),
        ({"dtype": torch.bfloat16}, None),
        ({}, ConvolutionCase(1, 1, (5, 3), "A").mask()[0, 0]),
    ],
    ids=["no bias", "same", "dilation", "bfloat16", "small mask"],
)
def test_options(options: dict[str, Any], own_mask: Tensor | None) -> None:
    module = foreign(mask=own_mask, **options)
    input = torch.randn(1, 3, 12, 11).to(options.get("dtype", F64))
    expected = module(input)
    assert len(fused_rnn.convert(module).replaced) == 1
    torch.testing.assert_close(module(input), expected)


class Scaling(Masking):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Unmasked(Masking):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, x)


class Dropping(Masking):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Conditional(Masking):
    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Pair(Masking):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Needy(Masking):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no image of this size")


class Gated(Masking):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gate = nn.Sigmoid()


def with_own_forward() -> nn.Module:
    module = foreign()
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


def interleaved() -> Tensor:
    mask = ConvolutionCase(3, 6, (5, 3), "A", 3).mask()
    mask[:, :, 2, 1] = torch.arange(3) < torch.arange(6).view(-1, 1) % 3
    return mask


KEPT: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: foreign(stride=(2, 1)), "its stride is (2, 1), not (1, 1)"),
    (lambda: foreign(groups=3, mask=ConvolutionCase(1, 6, (5, 3)).mask()), "its groups is 3, not 1"),
    (lambda: foreign(mask=torch.ones(6, 2, 5, 3)), "its mask of shape [6, 2, 5, 3] does not fit its weight"),
    (lambda: foreign(padding_mode="circular"), "its padding_mode is 'circular', not 'zeros'"),
    (lambda: foreign(padding=0), "its output has another size than its input, with padding=(0, 0)"),
    (
        lambda: foreign(mask=1 - ConvolutionCase(3, 6, (5, 3)).mask().int()),
        "its mask is none of MaskedConv2d's: not all taps before the centre are active for all channels",
    ),
    (
        lambda: foreign(mask=torch.ones(6, 3, 5, 3)),
        "its mask is none of MaskedConv2d's: taps after the centre are active",
    ),
    (
        lambda: foreign(mask=ConvolutionCase(3, 6, (5, 3), "A", 3).mask().flip(0)),
        "its mask is none of MaskedConv2d's: at the centre the channels have other groups",
    ),
    (
        lambda: Masking(torch.ones(3, 3, 2, 3), 3, 3, (2, 3), padding="same"),
        "its mask is none of MaskedConv2d's: the kernel's size is even",
    ),
    (
        lambda: foreign(mask=interleaved()),
        "its mask is none of MaskedConv2d's: it is that of mask_type='A' and data_channels=3, "
        "but with channel c in group c modulo 3 instead of all channels of a group in a row",
    ),
    (
        lambda: foreign(mask=0.5 * ConvolutionCase(3, 6, (5, 3)).mask()),
        "its mask is none of MaskedConv2d's: it has other values than 0 and 1",
    ),
    (lambda: foreign(Scaling), "its forward computes something else than a convolution with weight * mask"),
    (lambda: foreign(Unmasked), "its forward computes something else than a convolution with weight * mask"),
    (lambda: foreign(Dropping), "its forward computes something else than a convolution with weight * mask"),
    (lambda: foreign(Dropping).eval(), "its forward computes something else than a convolution with weight * mask"),
    (lambda: foreign(Conditional), "its forward takes more than an input"),
    (lambda: foreign(Pair), "its forward returns a tuple"),
    (lambda: foreign(Needy), "its forward fails on a random image: RuntimeError: no image of this size"),
    (lambda: foreign(Gated), "it contains other modules"),
    (with_own_forward, "its forward was replaced on the module itself"),
    (lambda: foreign(dtype=torch.complex64), "MaskedConv2d has no kernel for torch.complex64 on cpu"),
    (lambda: foreign().to("meta"), "its mask is on the meta device and has no values"),
]


@pytest.mark.parametrize(("make", "reason"), KEPT, ids=[reason for _, reason in KEPT])
def test_kept_with_a_reason(make: Callable[[], nn.Module], reason: str) -> None:
    module = make()
    cls, before = type(module), copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    report = fused_rnn.convert(nn.Sequential(module))
    assert report.replaced == ()
    assert [layer.reason for layer in report.kept] == [reason]
    assert type(module) is cls
    if not next(module.parameters()).is_meta:
        assert_identical(module.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_convolutions_are_not_reported() -> None:
    pruned = prune.random_unstructured(nn.Conv2d(3, 6, 3), "weight", 0.5)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), pruned, fused_rnn.MaskedConv2d(3, 6, 3), nn.BatchNorm2d(3))
    for report in (fused_rnn.convert(model), fused_rnn.revert(model)):
        assert (report.replaced, report.kept) == ((), ())


def test_convert_again_changes_nothing() -> None:
    model = nn.Sequential(foreign(), nn.ReLU(), nn.LSTM(3, 4))
    assert len(fused_rnn.convert(model).replaced) == 2
    again = fused_rnn.convert(model)
    assert (again.replaced, again.kept) == ((), ())


def test_copies() -> None:
    module = foreign(Padding, "B", 3)
    fused_rnn.convert(module)
    before = run(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert type(clone) is type(module)
        assert_identical(run(clone), before)
        fused_rnn.revert(clone)
        assert type(clone) is Padding


def test_checkpoints_of_the_original() -> None:
    original, module = foreign(), foreign()
    fused_rnn.convert(module)
    module.load_state_dict(original.state_dict())
    assert_all_accurate({"output": run(module)["output"]}, {"output": run(original)["output"]})
    original.load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match=r"mask is not the mask of this layer.*mask_type='B'"):
        module.load_state_dict(foreign(mask_type="B").state_dict())


def test_overridden_methods_are_still_called() -> None:
    module = foreign(Logging)
    fused_rnn.convert(module)
    module.load_state_dict({**module.state_dict(), "weight": torch.ones(6, 3, 5, 3)})
    assert module.loaded
    assert torch.equal(module.weight != 0, module.mask)
    with pytest.raises(RuntimeError, match="mask is not the mask of this layer"):
        module.load_state_dict(foreign(mask_type="B").state_dict())


def test_a_weight_of_two_layers_is_left_as_it_is() -> None:
    first, second = foreign(Multiplying, "A"), foreign(Multiplying, "B")
    second.weight = first.weight
    before = first.weight.detach().clone()
    assert len(fused_rnn.convert(nn.Sequential(first, second)).replaced) == 2
    assert torch.equal(first.weight, before)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_norm(normalise: Callable[[nn.Module], nn.Module]) -> None:
    module = normalise(foreign(Multiplying))
    before, state = run(module), copy.deepcopy(module.state_dict())
    assert len(fused_rnn.convert(module).replaced) == 1
    assert_identical(module.state_dict(), state)
    assert_all_accurate(run(module), before)
    fused_rnn.revert(module)
    assert isinstance(module, Multiplying)
    assert not isinstance(module, fused_rnn.MaskedConv2d)
    assert_identical(run(module), before)


def test_compile() -> None:
    module = foreign(Padding)
    fused_rnn.convert(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    input = torch.randn(2, 3, 9, 8, dtype=F64)
    assert torch.equal(compiled(input), module(input))
