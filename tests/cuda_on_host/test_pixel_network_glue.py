"""The operator pixel_network as it is on a GPU, run on the CPU within the package: its glue and the kernel below it."""

import importlib
from typing import Any

import pytest
import torch
from comparing import assert_accurate
from convolution_cases import ConvolutionCase
from image_models import MODELS, SIZE, condition, random_images, stepped_outputs
from pixel_networks import network_of
from torch import Tensor, nn

from fused_rnn import MaskedConv1d, MaskedConv2d, ops, reference
from fused_rnn.functional.pixel_network import PixelState
from fused_rnn.models import Categorical, PixelCNN

F64 = torch.float64


@pytest.fixture(autouse=True)
def _glue(operators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operators replace those for the CPU, with memory that is NaN at first."""
    module = importlib.import_module("fused_rnn.ops.pixel_network")
    for name in ("pixel_network", "pixel_network_pack"):
        monkeypatch.setattr(module, f"_{name}", getattr(operators, name).default)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_steps(name: str, dtype: torch.dtype) -> None:
    """The whole image is computed by the kernels of the CPU."""
    model = MODELS[name].to(dtype)
    images, cond = random_images(model, 3), condition(model, 3)
    with torch.no_grad():
        peer = model(images, cond)
        exact = model.double()(images, cond)
    assert_accurate(stepped_outputs(model.to(dtype), images, cond), exact, peer)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("name", ["joined", "three colours", "gated, mixture"])
def test_draws(name: str, temperature: float) -> None:
    model = MODELS[name].double()
    distribution, cond = model.distribution, condition(model, 2)
    shape = (2, *SIZE, distribution.data_channels, distribution.uniforms)
    uniforms = torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    observed, mask = random_images(model, 2), torch.rand(2, *SIZE) < 0.3
    drawn = model.sample(2, SIZE, cond, temperature, torch.Generator().manual_seed(5), observed, mask)
    assert torch.equal(drawn, reference.sample(model, uniforms, cond, temperature, observed, mask))
    assert model.sample(0, SIZE, None if cond is None else cond[:0]).shape == (0, distribution.channels, *SIZE)


def test_layers_alone() -> None:
    images = torch.randn(2, 6, 4, 5, dtype=F64)
    layer = MaskedConv2d(6, 9, 3, "B", 3, activation="relu", dtype=F64)
    state = layer.init_state(2, 4, 5)
    steps = [layer.step(images[:, :, row, column], state) for row in range(4) for column in range(5)]
    assert_accurate(torch.stack(steps, 2).view(2, 9, 4, 5), layer(images).detach())
    series = MaskedConv1d(6, 9, 3, "B", dilation=2, dtype=F64)
    state = series.init_state(2, 7)
    steps = [series.step(images[:, :, 0, time % 5], state) for time in range(7)]
    times = images[:, :, 0, [time % 5 for time in range(7)]]
    assert_accurate(torch.stack(steps, 2), series(times).detach())


def test_nothing_is_drawn_from_nan() -> None:
    model = PixelCNN(8, 1, Categorical(4)).eval()
    nn.init.constant_(model.network[-1].bias, torch.nan)
    with pytest.raises(ValueError, match="output is NaN or infinite"):
        model.sample(2, SIZE)


def small_state(batch: int = 1, weight: Tensor | None = None) -> PixelState:
    case = ConvolutionCase(1, 4, (3, 3), "A")
    return PixelState(network_of(case, torch.ones(4, 1, 3, 3) if weight is None else weight), batch, 2, 2)


def test_a_graph_cannot_be_captured(operators: Any) -> None:
    state = small_state()
    operators.set_capturing(True)
    try:
        with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
            state.advance(1)
    finally:
        operators.set_capturing(False)
    state.advance(4)


def test_networks_that_are_too_large() -> None:
    network = network_of(ConvolutionCase(1, 4, (3, 3), "A"), torch.ones(4, 1, 3, 3))
    sums = network.nodes[-1].output
    for _ in range(1000):
        sums = network.add_activation(sums, "relu", 1, False)
    with pytest.raises(NotImplementedError, match=r"a network may have \d+ operations .* but it has 1001"):
        PixelState(network, 1, 2, 2).advance(1)


def test_packed_weights() -> None:
    """Channels of one group after the other, each group filled up with zeros to whole vectors of 16 bytes."""
    weight = torch.randn(5, 3, 3, 3)
    network = network_of(ConvolutionCase(3, 5, (3, 3), "B", 3), weight)
    packed = ops.pixel_network_pack(network.parameters, PixelState(network, 1, 2, 2)._nodes, 3).view(5, 3, 3, 4)
    for group, channels in enumerate(([0, 1], [2, 3], [4])):
        active = weight[channels].flatten(2)[:, :, :5].permute(2, 1, 0)
        assert torch.equal(packed[:, :, group, : len(channels)], active)
        assert not packed[:, :, group, len(channels) :].any()
