"""check_autoregressive: every mistake that is known from public models is found and named, and right models pass."""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

import fused_rnn
from examples.layers import CHOICES, DenseMaskedConv2d
from examples.pixelcnn import Network
from fused_rnn import MaskedConv2d, check_autoregressive
from fused_rnn.autoregressive import Finding
from fused_rnn.autoregressive.report import Kind
from fused_rnn.models import Categorical, GatedPixelCNN, LogisticMixture, PixelCNN

GREY, COLOURS = (1, 5, 5), (3, 4, 4)


class Residual(nn.Module):
    """Adds the input to what a module makes of it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input: Tensor) -> Tensor:
        return input + self.inner(input)


class Interleave(nn.Module):
    """Changes contiguous blocks of three colours into alternating channels."""

    def forward(self, input: Tensor) -> Tensor:
        return input.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)


class CentreInPlace(nn.Module):
    """Subtracts the mean over the image in place, so the output of the module before it changes afterwards."""

    def forward(self, input: Tensor) -> Tensor:
        return input.sub_(input.mean((2, 3), keepdim=True))


class Zero(nn.Conv2d):
    """An unmasked convolution which starts with weights of zero, so that its leak does not show."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


def grey(*layers: nn.Module) -> nn.Module:
    """A first layer of type A, the given layers with 6 channels, and a head of type B."""
    return nn.Sequential(MaskedConv2d(1, 6, 3, "A"), *layers, nn.ReLU(), MaskedConv2d(6, 2, 1, "B"))


def coloured(*layers: nn.Module) -> nn.Module:
    """A first layer of type A with three colours, and the given layers with 9 channels."""
    return nn.Sequential(MaskedConv2d(3, 9, 3, "A", 3), nn.Tanh(), *layers)


# Each wrong model, and the layers in which its leaks and its missing dependencies first show.
WRONG: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    "type B first": (
        lambda: nn.Sequential(MaskedConv2d(1, 4, 3, "B"), nn.ReLU(), MaskedConv2d(4, 2, 3, "B")),
        {"0 (MaskedConv2d)"}, set(),
    ),
    "an unmasked layer": (lambda: grey(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)), {"2 (Conv2d)"}, set()),
    "an unmasked layer of zeros": (
        lambda: grey(nn.ReLU(), Residual(Zero(6, 6, 3, padding=1))), {"2.inner (Zero)"}, set()
    ),
    "GroupNorm": (lambda: grey(nn.GroupNorm(2, 6)), {"1 (GroupNorm)"}, set()),
    "InstanceNorm": (lambda: grey(nn.InstanceNorm2d(6)), {"1 (InstanceNorm2d)"}, set()),
    "LayerNorm over the image": (lambda: grey(nn.LayerNorm([6, 5, 5])), {"1 (LayerNorm)"}, set()),
    "a leak in place": (lambda: grey(CentreInPlace()), {"1 (CentreInPlace)"}, set()),
    "BatchNorm in training": (lambda: grey(nn.BatchNorm2d(6)), {"1 (BatchNorm2d)"}, set()),
    "a residual around type A": (
        lambda: nn.Sequential(Residual(MaskedConv2d(1, 1, 3, "A")), MaskedConv2d(1, 4, 3, "B")), {"0 (Residual)"}, set()
    ),
    "a mirrored image": (
        lambda: grey(nn.ReflectionPad2d((0, 1, 0, 0)), nn.Conv2d(6, 6, (1, 2))), {"2 (Conv2d)"}, set()
    ),
    "type A and then 1x1 of type A": (
        lambda: nn.Sequential(MaskedConv2d(1, 4, 3, "A"), nn.ReLU(), MaskedConv2d(4, 2, 1, "A")),
        set(), {"2 (MaskedConv2d)"},
    ),
    "type A twice": (
        lambda: nn.Sequential(MaskedConv2d(1, 4, 3, "A"), nn.ReLU(), MaskedConv2d(4, 2, 3, "A")),
        set(), {"2 (MaskedConv2d)"},
    ),
    "no left taps": (lambda: nn.Sequential(MaskedConv2d(1, 4, 3, "vertical_A")), set(), {"0 (MaskedConv2d)"}),
}  # fmt: skip
WRONG_COLOURS: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    "colours in another layout": (
        lambda: coloured(Interleave(), MaskedConv2d(9, 6, 1, "B", 3)), {"2 (Interleave)"}, set()
    ),
    "no colours in a later layer": (lambda: coloured(MaskedConv2d(9, 6, 1, "B")), {"2 (MaskedConv2d)"}, set()),
    "no colours in the first layer": (
        lambda: nn.Sequential(MaskedConv2d(3, 9, 3, "A"), nn.ReLU(), MaskedConv2d(9, 6, 1, "B", 3)),
        set(), {"0 (MaskedConv2d)"},
    ),
    "type A of colours and then 1x1 of type A": (
        lambda: coloured(MaskedConv2d(9, 6, 1, "A", 3)), set(), {"2 (MaskedConv2d)"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*WRONG, *WRONG_COLOURS])
def test_mistakes_are_found_and_named(name: str) -> None:
    make, leaks, missing = {**WRONG, **WRONG_COLOURS}[name]
    is_grey = name in WRONG
    report = check_autoregressive(make(), GREY if is_grey else COLOURS, 1 if is_grey else 3)
    assert not report
    assert {finding.layer for finding in report.leaks} == leaks
    assert {finding.layer for finding in report.missing} == missing


class Shifted(nn.Module):
    """A right model in plain torch.nn: images shifted down or right, and convolutions of what is above or to the left.

    It is built like PixelCNN++: one stream sees whole rows above, the other the pixels to the left, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down, self.down_more = nn.Conv2d(1, 6, (2, 3)), nn.Conv2d(6, 6, (2, 3))
        self.right, self.across, self.head = nn.Conv2d(1, 6, (1, 2)), nn.Conv2d(12, 6, (2, 2)), nn.Conv2d(6, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        rows = pad(images, (1, 1, 2, 0))[:, :, :-1]
        above = self.down(rows)
        left = self.right(pad(images, (2, 0, 0, 0))[..., :-1])
        left = torch.tanh(self.across(pad(torch.cat([above, left], 1), (1, 0, 1, 0))))
        above = torch.relu(self.down_more(pad(above, (1, 1, 1, 0))))
        return self.head(left + above)


class Attention(nn.Module):
    """A right model in plain torch.nn: causal self-attention over the pixels, shifted by one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        pixels = pad(images.flatten(1)[:, :-1], (1, 0))[..., None]
        mask = torch.ones(height * width, height * width).triu(1).bool()
        features = self.layer(self.embed(pixels), src_mask=mask)
        return self.head(features).transpose(1, 2).unflatten(2, (height, width))


def dense() -> nn.Module:
    """A right model in plain torch.nn: the convolutions of most PixelCNNs, whose weight is multiplied by a mask."""
    return nn.Sequential(
        DenseMaskedConv2d(1, 6, 3, "A"),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(6),
        Residual(DenseMaskedConv2d(6, 6, 3, "B")),
    ).eval()


RIGHT: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "PixelCNN": (lambda: PixelCNN(4, 2, Categorical(4), kernel_size=3, dropout=0.5), GREY),
    "PixelCNN, colours": (lambda: PixelCNN(6, 1, Categorical(2, 3), kernel_size=3), COLOURS),
    "PixelCNN, two colours of four": (lambda: PixelCNN(9, 1, Categorical(2, 4), kernel_size=3), (4, 3, 3)),
    "PixelCNN, logistics": (lambda: PixelCNN(4, 1, LogisticMixture(2, 9, 3), kernel_size=3), COLOURS),
    "GatedPixelCNN": (lambda: GatedPixelCNN(4, 3, Categorical(4), first_kernel_size=5), (1, 6, 6)),
    "GatedPixelCNN, colours": (
        lambda: GatedPixelCNN(6, 2, Categorical(2, 3), condition_size=3, first_kernel_size=3, dropout=0.5), COLOURS
    ),
    "an image of one row": (lambda: PixelCNN(4, 1, Categorical(4)), (1, 1, 6)),
    "an image of one pixel": (lambda: PixelCNN(6, 1, Categorical(4, 3)), (3, 1, 1)),
    "more pixels than a batch": (lambda: PixelCNN(4, 1, Categorical(4)), (1, 9, 10)),
    "strong dropout": (lambda: grey(nn.Dropout(0.99), nn.Dropout2d(0.99)), GREY),
    "shifted": (Shifted, GREY),
    "attention": (Attention, GREY),
    "dense": (dense, GREY),
    "example": (lambda: Network(CHOICES["fused"], (4, 4), 8, 2, 5), (1, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_models_pass(name: str) -> None:
    make, shape = RIGHT[name]
    report = check_autoregressive(make(), shape)
    assert report, report
    nans = [finding for finding in report.warnings if finding.kind is Kind.NAN]
    # A weight of zero times NaN is NaN, also in attention.
    assert bool(nans) == (name in ("dense", "attention"))


def test_a_convolution_for_each_colour_passes() -> None:
    """The first layer has shown each colour the earlier ones, so later layers may keep them apart."""
    assert check_autoregressive(coloured(nn.Conv2d(9, 6, 1, groups=3)), COLOURS, 3)


def test_batch_norm_in_eval_mode_passes() -> None:
    model = grey(nn.BatchNorm2d(6))
    assert not check_autoregressive(model, GREY)
    assert check_autoregressive(model.eval(), GREY)


def test_a_weight_that_was_masked_once() -> None:
    """A model whose masks are zeros in its weights is right as long as it keeps these weights."""
    layer = nn.Conv2d(1, 3, 3, padding=1)
    with torch.no_grad():
        layer.weight *= fused_rnn.reference.mask(3, 1, (3, 3), "A")
    assert not check_autoregressive(layer, GREY)
    assert check_autoregressive(layer, GREY, random_weights=False)


def test_a_mask_that_is_a_parameter() -> None:
    class Masked(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(1, 3, 3, padding=1)
            self.mask = nn.Parameter(fused_rnn.reference.mask(3, 1, (3, 3), "A").float(), requires_grad=False)

        def forward(self, input: Tensor) -> Tensor:
            return conv2d(input, self.weight * self.mask, self.bias, padding=1)

    assert check_autoregressive(Masked(), GREY)


def test_blind_spots() -> None:
    """Those of a stack of 3x3 masks are what no path of taps reaches; two stacks have none."""
    a, b = ({(1, -1), (1, 0), (1, 1), (0, -1), *centre} for centre in ([], [(0, 0)]))
    height, width, layers = 5, 9, 3
    reached = a
    for _ in range(layers - 1):
        reached = {(i + k, j + m) for (i, j), (k, m) in product(reached, b)}
    model = nn.Sequential(MaskedConv2d(1, 8, 3, "A"), *(MaskedConv2d(8, 8, 3, "B") for _ in range(layers - 1)))
    report = check_autoregressive(model, (1, height, width))
    assert report
    found = {(f.output_pixel[0] - f.input_pixel[0], f.input_pixel[1] - f.output_pixel[1]) for f in report.warnings}
    assert {finding.kind for finding in report.warnings} == {Kind.BLIND_SPOT}
    # The convolutions see as far as (3, 3), but in the rows between only as far to the right as up.
    assert reached >= {(3, 3), (2, 2), (1, 1)}
    assert not reached & {(1, 2), (1, 3), (2, 3)}
    assert found == {(1, 2), (1, 3), (2, 3)}
    gated = GatedPixelCNN(8, layers, Categorical(4), first_kernel_size=3)
    assert check_autoregressive(gated, (1, height, width)).warnings == ()


def test_layout_of_the_outputs() -> None:
    model = coloured(MaskedConv2d(9, 12, 1, "B", 3), Interleave())
    assert check_autoregressive(model, COLOURS, 3, layout="interleaved")
    report = check_autoregressive(model, COLOURS, 3)
    assert {finding.layer for finding in report.leaks} == {"3 (Interleave)"}


def test_each_leak_is_named() -> None:
    """Every pair of places of a known leak is listed, and no other."""
    model = nn.Sequential(MaskedConv2d(1, 2, 3, "A"), nn.Tanh(), nn.Conv2d(2, 2, (1, 3), padding=(0, 1)))
    report = check_autoregressive(model, (1, 3, 4))
    leaks = {(finding.output_pixel, finding.input_pixel) for finding in report.leaks}
    # The last layer sees the right neighbour's features, and so the pixel itself and those above, which are allowed.
    assert leaks == {((i, j), (i, j)) for i, j in product(range(3), range(3))}
    assert report.leaks[0] == Finding(Kind.LEAK, (0, 0), 0, (0, 0), 0, "2 (Conv2d)")


def test_other_images_of_the_batch() -> None:
    class Mean(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return input + input[:, :, :1, :1].mean(0) * torch.ones(5, 5).index_fill_(1, torch.tensor(0), 0)

    report = check_autoregressive(grey(Mean()), GREY)
    assert [finding.kind for finding in report.leaks] == []  # the first layer's corner depends on no pixel
    model = nn.Sequential(Mean(), MaskedConv2d(1, 4, 3, "A"))
    report = check_autoregressive(model, GREY)
    assert {finding.kind for finding in report.leaks} == {Kind.OTHER_IMAGE}
    assert report.leaks[0].layer == "0 (Mean)"


def test_the_model_does_not_change() -> None:
    model = nn.Sequential(MaskedConv2d(1, 4, 3, "A"), nn.BatchNorm2d(4), nn.Dropout(), MaskedConv2d(4, 2, 3, "B"))
    model[1].eval()
    model.register_buffer("counter", torch.zeros(3))
    model(torch.randn(2, 1, 5, 5)).sum().backward()
    before = copy.deepcopy(model)
    grads = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    random_state = torch.get_rng_state()
    check_autoregressive(model, GREY)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(map(torch.equal, before.state_dict().values(), model.state_dict().values()))
    assert all(map(torch.equal, grads, (parameter.grad for parameter in model.parameters())))  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert not any(module._forward_hooks for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_buffers_that_change_in_training() -> None:
    """spectral_norm iterates on a buffer in each pass, which must not look like a dependency."""
    model = nn.Sequential(MaskedConv2d(1, 4, 3, "A"), nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)))
    assert check_autoregressive(model, GREY)


def test_callables() -> None:
    model = grey()
    assert check_autoregressive(lambda images: model(images), GREY, dtype=torch.float32)
    wrong = grey(nn.GroupNorm(1, 6)).double()
    report = check_autoregressive(lambda images: wrong(images), GREY)
    assert {finding.layer for finding in report.leaks} == {"(the model itself)"}


def test_a_compiled_model() -> None:
    assert check_autoregressive(torch.compile(grey(), backend="eager"), GREY)
    report = check_autoregressive(torch.compile(grey(nn.GroupNorm(1, 6)), backend="eager"), GREY)
    assert report.leaks


def test_autocast_is_off() -> None:
    def lossless(images: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return pad(images, (1, 0))[..., :-1] + pad(images, (0, 0, 1, 0))[:, :, :-1]

    with torch.autocast("cpu", torch.bfloat16):
        assert check_autoregressive(lossless, GREY)


def test_conditions() -> None:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shift = MaskedConv2d(1, 4, 3, "A"), nn.Linear(3, 4)

        def forward(self, images: Tensor, cond: Tensor, scale: float) -> Tensor:
            assert len(cond) == len(images)
            return self.first(images) + scale * self.shift(cond)[:, :, None, None]

    assert check_autoregressive(Conditional(), GREY, args=(torch.randn(1, 3), 2.0))
    model = GatedPixelCNN(4, 2, Categorical(2), condition_size=3, first_kernel_size=3)
    assert check_autoregressive(model, GREY, args=(torch.tensor([1]),))


BAD: list[tuple[nn.Module, dict[str, Any], str]] = [
    (nn.Identity(), {"shape": (5, 5)}, "shape must be channels, height and width"),
    (nn.Identity(), {"shape": (1, 0, 5)}, "shape must be channels, height and width"),
    (nn.Identity(), {"data_channels": 2}, "data_channels must be from 1 to the 1 channels of shape"),
    (nn.Identity(), {"levels": 1}, "levels must be at least 2"),
    (nn.Identity(), {"layout": "rows"}, "layout must be 'blocks' or 'interleaved'"),
    (nn.Identity(), {"points": 0}, "points must be positive"),
    (PixelCNN(4, 1, Categorical(4)), {"levels": 4}, "levels and encode must be None"),
    (nn.Conv2d(1, 2, 3), {}, r"model must return \[batch, outputs, height, width\] = \[2, outputs, 5, 5\]"),
    (nn.Flatten(), {}, "model must return"),
    (nn.Conv2d(3, 2, 1), {"shape": (3, 5, 5), "data_channels": 3}, "data_channels must not exceed the outputs"),
    (nn.LSTM(5, 5), {"encode": lambda images: images[:, 0]}, "model must return a tensor, got tuple"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "options", "message"), BAD)
def test_errors(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_autoregressive(model, **{"shape": GREY, **options})


def test_errors_of_results() -> None:
    class Log(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return input.log()

    with pytest.raises(ValueError, match="model returned Inf or NaN for finite images"):
        check_autoregressive(Log(), GREY)
    calls: list[int] = []

    def counting(images: Tensor) -> Tensor:
        calls.append(1)
        return images * len(calls)

    with pytest.raises(ValueError, match="model is not deterministic"):
        check_autoregressive(counting, GREY)


def test_report_as_text() -> None:
    report = check_autoregressive(WRONG["type B first"][0](), (1, 3, 4))
    assert str(report).splitlines() == [
        "NOT autoregressive",
        "leaks: 12",
        *(
            f"  output {pixel} of colour 0 depends on input {pixel} of channel 0; first shows in 0 (MaskedConv2d)"
            for pixel in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
        ),
        "  and 7 more",
        "warnings: 1",
        "  output (1, 0) never sees input (0, 2)",
    ]
    assert str(check_autoregressive(Shifted(), GREY)) == "autoregressive"
