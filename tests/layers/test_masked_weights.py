"""Masked entries of a weight are zero and stay so; checkpoints with a mask; arguments of torch.nn's convolutions."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import assert_accurate
from convolution_cases import MASKS, ConvolutionCase
from torch import Tensor, nn, randn
from torch.nn.functional import conv2d
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fused_rnn import MaskedConv1d, MaskedConv2d
from fused_rnn.reference.masked_conv2d import identify

F64 = torch.float64
LAYERS: dict[str, Callable[[], MaskedConv1d | MaskedConv2d]] = {
    **{
        f"{mask_type} {groups}": lambda mask_type=mask_type, groups=groups: MaskedConv2d(3, 6, 5, mask_type, groups)  # type: ignore[misc]
        for mask_type, groups in MASKS
    },
    "one dimension": lambda: MaskedConv1d(3, 6, 3, "A", 3),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> MaskedConv1d | MaskedConv2d:
    return LAYERS[request.param]()


def assert_masked(layer: MaskedConv1d | MaskedConv2d) -> None:
    """Assert that exactly the active entries of the weight are not zero."""
    assert torch.equal(layer.weight != 0, layer.mask)


def run(layer: MaskedConv1d | MaskedConv2d, *, spoilt: bool = False) -> Tensor:
    """Return the output for random input, in which ``spoilt`` makes one value NaN."""
    input = randn(2, 3, *(7 for _ in layer.kernel_size))
    if spoilt:
        input.view(-1)[0] = float("nan")
    return layer(input)


@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
def test_mask(mask_type: str, groups: int) -> None:
    layer = MaskedConv2d(6, 9, (5, 3), mask_type, groups)
    assert torch.equal(layer.mask, ConvolutionCase(6, 9, (5, 3), mask_type, groups).mask())
    assert layer.to("meta").mask.is_meta
    layer = MaskedConv2d(6, 9, (5, 3), mask_type, groups)
    layer.mask.fill_(True)  # a copy
    assert not layer.mask.all()
    with pytest.raises(AttributeError):
        layer.mask = torch.ones(9, 6, 5, 3)  # type: ignore[misc]


@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
def test_conv2d_with_the_weight_itself(mask_type: str, groups: int) -> None:
    layer = MaskedConv2d(3, 6, 5, mask_type, groups, dilation=(1, 2), dtype=F64)
    input = randn(2, 3, 8, 9, dtype=F64)
    expected = conv2d(input, layer.weight, layer.bias, padding=(2, 4), dilation=(1, 2))
    assert_accurate(layer(input), expected)


def test_conv_forward_masks_any_weight(layer: MaskedConv1d | MaskedConv2d) -> None:
    input = randn(2, 3, *(7 for _ in layer.kernel_size))
    noise = torch.where(layer.mask, layer.weight, float("nan"))
    assert torch.equal(layer._conv_forward(input, noise, layer.bias), layer(input))


def test_initialisation(layer: MaskedConv1d | MaskedConv2d) -> None:
    assert_masked(layer)
    layer.reset_parameters()
    assert_masked(layer)
    with torch.device("meta"):
        empty = copy.deepcopy(layer)
    empty.to_empty(device="cpu").reset_parameters()
    assert_masked(empty)


# All optimizers of torch.optim that take dense gradients of any rank. Muon takes matrices only, SparseAdam sparse ones.
OPTIMIZERS = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in ("Optimizer", "Muon", "SparseAdam")
)
# The options that change how an optimizer treats a gradient of zero.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}],
    "Adam": [{"amsgrad": True}, {"weight_decay": 0.1}],
    "AdamW": [{"weight_decay": 0.1, "amsgrad": True}],
    "RMSprop": [{"momentum": 0.9, "centered": True, "weight_decay": 0.1}],
}


def test_there_are_optimizers() -> None:
    assert {"SGD", "AdamW", "LBFGS", "Rprop"} <= set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in OPTIMIZERS for options in [{}, *OPTIONS.get(name, [])]], ids=str
)
def test_optimizers_leave_masked_entries_at_zero(
    name: str, options: dict[str, Any], layer: MaskedConv1d | MaskedConv2d
) -> None:
    optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.01, **options)
    before = layer.weight.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = run(layer).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(layer.weight != before, layer.mask)
    assert not layer.weight[~layer.mask].any()


def test_gradient_of_a_masked_entry_is_zero_even_with_nan(layer: MaskedConv1d | MaskedConv2d) -> None:
    run(layer, spoilt=True).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isnan().any() == layer.mask.any()
    assert not layer.weight.grad[~layer.mask].any()


def test_zero_masked_weights_after_noise(layer: MaskedConv1d | MaskedConv2d) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def add_noise(*_: Any) -> None:
        layer.weight.data.add_(1)

    optimizer.register_step_post_hook(add_noise)
    optimizer.register_step_post_hook(lambda *_: layer.zero_masked_weights())
    run(layer).sum().backward()
    optimizer.step()
    assert_masked(layer)


def test_weight_norm_counts_active_entries_only(layer: MaskedConv1d | MaskedConv2d) -> None:
    expected = run_fixed(layer)
    norms = layer.weight.flatten(1).norm(dim=1)
    weight_norm(layer)
    assert_accurate(run_fixed(layer), expected.double(), expected)
    parametrized: Any = layer.parametrizations["weight"]  # type: ignore[index]
    torch.testing.assert_close(parametrized.original0.flatten(), norms)
    optimizer = torch.optim.Adam(layer.parameters())
    for _ in range(3):
        run(layer).square().sum().backward()
        optimizer.step()
    assert not parametrized.original1[~layer.mask].any()
    with torch.no_grad():
        parametrized.original1.add_(1)
    layer.zero_masked_weights()
    assert not parametrized.original1[~layer.mask].any()
    assert parametrized.original0.all() == layer.mask.any()


def run_fixed(layer: MaskedConv1d | MaskedConv2d) -> Tensor:
    torch.manual_seed(7)
    return run(layer).detach()


def test_spectral_norm_is_that_of_the_active_entries() -> None:
    layer = MaskedConv2d(3, 6, 5, "B", 3, dtype=F64)
    exact = torch.linalg.matrix_norm((layer.weight * layer.mask).flatten(1), 2)
    weight = layer.weight.detach().clone()
    spectral_norm(layer, n_power_iterations=100)
    torch.testing.assert_close(layer.weight, weight / exact)
    # The derivative of the norm by masked entries of the centre is not zero.
    optimizer = torch.optim.SGD(layer.parameters(), lr=1)
    layer(randn(2, 3, 7, 7, dtype=F64)).square().sum().backward()
    optimizer.step()
    original: Any = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
    assert original[~layer.mask].any()
    layer.zero_masked_weights()
    assert torch.equal(original != 0, layer.mask)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_zeroes_masked_entries(layer: MaskedConv1d | MaskedConv2d, assign: bool) -> None:
    model = nn.Sequential(layer)
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    assert torch.equal(layer.weight, layer.mask.float())
    assert layer.weight.requires_grad
    assert state["0.weight"].all()  # not written to
    assert state["0.bias"].data_ptr() == layer.bias.data_ptr() if assign else True  # type: ignore[union-attr]


def test_assigned_weight_stays_the_checkpoints_own_tensor(layer: MaskedConv1d | MaskedConv2d) -> None:
    state = copy.deepcopy(layer.state_dict())
    layer.load_state_dict(state, assign=True)
    assert layer.weight.data_ptr() == state["weight"].data_ptr()


def test_loading_into_meta_and_without_weight(layer: MaskedConv1d | MaskedConv2d) -> None:
    state = {name: torch.ones_like(value) for name, value in layer.state_dict().items()}
    empty = copy.deepcopy(layer).to("meta")
    with pytest.warns(UserWarning, match="non-meta parameter"):
        empty.load_state_dict(state)
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty.weight, layer.mask.float())
    before = layer.weight.detach().clone()
    layer.load_state_dict({"bias": state["bias"]}, strict=False)
    assert torch.equal(layer.weight, before)


def test_a_checkpoint_of_weight_norm_is_loaded_as_it_is() -> None:
    """Its norm counts masked entries, so without them the layer would compute something else."""
    layer = weight_norm(MaskedConv2d(3, 6, 5, "A"))
    state = {name: torch.ones_like(value) for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)
    assert layer.state_dict()["parametrizations.weight.original1"].all()


def foreign_state(layer: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """Return a checkpoint of another package's layer: a weight, a bias and a mask."""
    return {"weight": torch.ones(6, 3, 5, 5), "bias": torch.zeros(6), "mask": mask}


@pytest.mark.parametrize("prefix", ["", "0."])
@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
def test_checkpoint_with_our_mask(mask_type: str, groups: int, prefix: str) -> None:
    layer = MaskedConv2d(3, 6, 5, mask_type, groups)
    active = ConvolutionCase(3, 6, (5, 5), mask_type, groups).mask()
    masks = [active, active.float(), active.to("meta")]
    if groups == 1:
        masks += [active[:1, :1].int(), active[0, 0]]
    model = nn.Sequential(layer) if prefix else layer
    for mask in masks:
        layer.reset_parameters()
        state = foreign_state(layer, mask)
        given = {f"{prefix}{name}": value for name, value in state.items()}
        result = model.load_state_dict(given)
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert torch.equal(layer.weight, active.float())
        assert f"{prefix}mask" in given
    assert list(layer.state_dict()) == ["weight", "bias"]


def checkerboard() -> Tensor:
    rows, columns = torch.arange(5).view(-1, 1), torch.arange(5)
    return ((rows + columns) % 2).expand(6, 3, 5, 5)


def interleaved() -> Tensor:
    """Return the mask of type A for colours that alternate: channel c is of colour c modulo 3."""
    mask = ConvolutionCase(3, 6, (5, 5), "A", 3).mask()
    mask[:, :, 2, 2] = torch.arange(3) < torch.arange(6).view(-1, 1) % 3
    return mask


OTHER_MASKS: list[tuple[Tensor, str, int, str]] = [
    (ConvolutionCase(3, 6, (5, 5), "B", 1).mask(), "A", 1, "it is that of mask_type='B' and data_channels=1"),
    (ConvolutionCase(3, 6, (5, 5), "A", 3).mask(), "B", 3, "it is that of mask_type='A' and data_channels=3"),
    (ConvolutionCase(3, 6, (5, 5), "A", 1).mask(), "vertical_A", 1, "it is that of mask_type='A'"),
    (checkerboard(), "A", 1, r"entries differ; it masks weight\[0, 0, 0, 0\]"),
    (interleaved(), "A", 3, "mask_type='A' and data_channels=3, but with channel c in group c modulo 3"),
    (torch.ones(6, 3, 5, 5), "B", 3, r"222 of 450 entries differ; it uses weight\[0, 0, 2, 3\]"),
    (torch.ones(6, 3, 3, 3), "A", 1, r"its shape is \[6, 3, 3, 3\], not \[6, 3, 5, 5\]"),
    (torch.full((6, 3, 5, 5), 0.5), "A", 1, "other values than 0 and 1"),
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("mask", "mask_type", "groups", "words"), OTHER_MASKS, ids=[row[3] for row in OTHER_MASKS])
def test_checkpoint_with_another_mask(mask: Tensor, mask_type: str, groups: int, words: str, strict: bool) -> None:
    model = nn.Sequential(MaskedConv2d(3, 6, 5, mask_type, groups))
    state = {f"0.{name}": value for name, value in foreign_state(model, mask).items()}
    with pytest.raises(RuntimeError, match=f"0.mask is not the mask of this layer, .*{mask_type}.*{words}"):
        model.load_state_dict(state, strict=strict)


def test_checkpoint_with_another_mask_in_one_dimension() -> None:
    layer = MaskedConv1d(3, 6, 3, "A")
    state = {**layer.state_dict(), "mask": layer.mask}
    layer.load_state_dict(state)
    state["mask"] = MaskedConv1d(3, 6, 3, "B").mask
    with pytest.raises(RuntimeError, match="it is that of mask_type='B' and data_channels=1"):
        layer.load_state_dict(state)
    state["mask"] = torch.zeros(6, 3, 3)
    with pytest.raises(RuntimeError, match="36 of 54 entries differ; it masks"):
        layer.load_state_dict(state)


def test_what_else_is_missing_or_unexpected_is_reported() -> None:
    layer = MaskedConv2d(3, 6, 5)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"(.|\n)*Unexpected key.*"other"'):
        layer.load_state_dict({"bias": torch.zeros(6), "mask": layer.mask, "other": torch.zeros(1)})


@pytest.mark.parametrize(("mask_type", "groups"), MASKS)
@pytest.mark.parametrize(("in_channels", "out_channels"), [(3, 6), (4, 7), (7, 3)])
def test_identify(mask_type: str, groups: int, in_channels: int, out_channels: int) -> None:
    mask = ConvolutionCase(in_channels, out_channels, (3, 5), mask_type, groups).mask()
    assert identify(mask) == (mask_type, groups)
    assert identify(~mask) is None
    assert identify(mask[..., 1:]) is None


BOTH = (MaskedConv1d, MaskedConv2d)
ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (
        (3, 6, 5, "A"),
        {"padding": 2},
        "has no padding: its output always has the size of its input.*Leave out padding=2",
    ),
    ((3, 6, 5, "A"), {"stride": 1}, "has no stride: its stride is always 1. Leave out stride=1"),
    ((3, 6, 5, "A"), {"groups": 3}, "has no groups: data_channels divides the channels into groups"),
    ((3, 6, 5, "A"), {"padding_mode": "circular"}, "has no padding_mode: everything outside of the input is zero"),
    ((3, 6, 5, "A"), {"dilatation": 2}, "unexpected keyword argument 'dilatation'"),
    ((3, 6, 5, 1, 2), {}, r"the order is Masked.*\(in_channels, out_channels, .* got mask_type=1.* no stride"),
    (("A", 3, 6, 5, 1, 2), {"bias": False}, r"in_channels must be a number, got 'A'; the order is Masked"),
    ((3, 6, 5, "A", 1, 2, 1), {}, "bias, dilation, .* are given by name, but got 2 more arguments by position"),
]


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(("args", "options", "words"), ARGUMENTS, ids=[row[2] for row in ARGUMENTS])
def test_arguments_of_torch_nn(cls: type[nn.Module], args: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        cls(*args, **options)
