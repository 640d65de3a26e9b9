"""Sampling on a GPU: steps agree with the whole image, and draws with the definition and with those of the CPU."""

import copy
import math

import pytest
import torch
from comparing import assert_accurate
from image_models import MODELS, SIZE, Halves, condition, dense_outputs, gated, random_images, stepped_outputs
from on_gpu import float32_precision
from torch import Tensor, nn

from fused_rnn import MaskedConv1d, MaskedConv2d, reference
from fused_rnn.models import AutoregressiveImageModel, Categorical, GatedPixelCNN, LogisticMixture, PixelCNN

pytestmark = pytest.mark.needs_cuda

F64 = torch.float64
DEVICE = "cuda"


def on_gpu(model: AutoregressiveImageModel, dtype: torch.dtype) -> AutoregressiveImageModel:
    """Return a copy of a model on the GPU."""
    return copy.deepcopy(model).to(DEVICE, dtype)


def inputs(model: AutoregressiveImageModel, batch: int) -> tuple[Tensor, Tensor | None]:
    cond = condition(model, batch)
    return random_images(model, batch).to(DEVICE), None if cond is None else cond.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", MODELS)
def test_steps_agree_with_the_whole_image(name: str, batch: int, dtype: torch.dtype) -> None:
    model = on_gpu(MODELS[name], dtype)
    images, cond = inputs(model, batch)
    with float32_precision("ieee"):
        exact, peer = (dense_outputs(model, images, cond, other) for other in (F64, dtype))
    assert_accurate(stepped_outputs(model, images, cond), exact, peer)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_large_model(dtype: torch.dtype) -> None:
    """More images than multiprocessors, and sums of many channels."""
    model = GatedPixelCNN(72, 3, Categorical(32), kernel_size=5).eval().to(DEVICE, dtype)
    images = random_images(model, 700, (5, 9)).to(DEVICE)
    with float32_precision("ieee"):
        exact, peer = (dense_outputs(model, images, None, other) for other in (F64, dtype))
    assert_accurate(stepped_outputs(model, images, None), exact, peer)


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_draws_are_those_of_the_definition_and_of_the_cpu(name: str, temperature: float) -> None:
    model, batch = on_gpu(MODELS[name], F64), 3
    images, cond = inputs(model, batch)
    distribution, mask = model.distribution, torch.rand(batch, *SIZE, device=DEVICE) < 0.3
    shape = (batch, *SIZE, distribution.data_channels, distribution.uniforms)
    uniforms = torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    drawn = model.sample(batch, SIZE, cond, temperature, torch.Generator().manual_seed(5), images, mask)
    assert drawn.device.type == DEVICE
    expected = reference.sample(model, uniforms.to(DEVICE), cond, temperature, images, mask)
    assert torch.equal(drawn, expected)
    on_cpu = (None if tensor is None else tensor.cpu() for tensor in (cond, images, mask))
    cond, images, mask = on_cpu  # type: ignore[assignment]
    theirs = model.cpu().sample(batch, SIZE, cond, temperature, torch.Generator().manual_seed(5), images, mask)
    assert torch.equal(drawn.cpu(), theirs)


def test_bits_do_not_depend_on_the_batch() -> None:
    model = on_gpu(MODELS["gated, three colours"], torch.float32)
    images = random_images(model, 600).to(DEVICE)
    many = stepped_outputs(model, images, None)
    for batch in (1, 2, 200):
        assert torch.equal(stepped_outputs(model, images[:batch], None), many[:batch])
    assert torch.equal(stepped_outputs(model, images, None), many)


def test_generators() -> None:
    model = on_gpu(MODELS["PixelCNN"], torch.float32)
    torch.manual_seed(7)
    of_default = model.sample(2, SIZE)
    assert torch.equal(of_default, model.sample(2, SIZE, generator=torch.Generator().manual_seed(7)))
    first, second = (model.sample(2, SIZE, generator=torch.Generator(DEVICE).manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, of_default)
    with pytest.raises(ValueError, match=r"^generator must be on the CPU or on cpu, got one on cuda"):
        model.cpu().sample(2, SIZE, generator=torch.Generator(DEVICE))


def test_a_distribution_of_ones_own() -> None:
    model = AutoregressiveImageModel(gated(3), Halves(6, 3)).eval().to(DEVICE, F64)
    uniforms = torch.rand(2, *SIZE, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    observed, mask = random_images(model, 2).to(DEVICE), torch.rand(2, *SIZE, device=DEVICE) < 0.3
    drawn = model.sample(2, SIZE, None, 1.0, torch.Generator().manual_seed(1), observed, mask)
    assert torch.equal(drawn, reference.sample(model, uniforms, None, 1.0, observed, mask))


@pytest.mark.parametrize("distribution", [Categorical(90), LogisticMixture(2, 4, 1)], ids=repr)
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_nothing_is_drawn_from_nan(value: float, distribution: Categorical | LogisticMixture) -> None:
    model = PixelCNN(8, 1, distribution).eval().to(DEVICE)
    nn.init.constant_(model.network[-1].bias, value)
    with pytest.raises(ValueError, match="output is NaN or infinite"):
        model.sample(2, SIZE)
    nn.init.zeros_(model.network[-1].bias)
    assert model.sample(2, SIZE).shape == (2, 1, *SIZE)  # the GPU can still be used


def test_layers_step() -> None:
    images = torch.randn(2, 6, 4, 5, dtype=F64, device=DEVICE)
    layer = MaskedConv2d(6, 9, 3, "B", 3, activation="relu", dtype=F64, device=DEVICE)
    state = layer.init_state(2, 4, 5)
    steps = [layer.step(images[:, :, row, column], state) for row in range(4) for column in range(5)]
    assert_accurate(torch.stack(steps, 2).view(2, 9, 4, 5), layer(images).detach())
    times = torch.randn(2, 6, 7, dtype=F64, device=DEVICE)
    series = MaskedConv1d(6, 9, 3, "B", dilation=2, dtype=F64, device=DEVICE)
    state = series.init_state(2, 7)
    assert_accurate(torch.stack([series.step(times[:, :, t], state) for t in range(7)], 2), series(times).detach())


def test_what_is_on_another_device_is_named() -> None:
    model = on_gpu(MODELS["gated, with classes"], torch.float32)
    images, cond = inputs(model, 2)
    mask = torch.ones(SIZE, dtype=torch.bool, device=DEVICE)
    good = {"cond": cond, "observed": images, "observed_mask": mask}
    for name, tensor in good.items():
        assert tensor is not None
        with pytest.raises(ValueError, match=rf"^{name} must be on cuda:0, like the model, got one on cpu"):
            model.sample(2, SIZE, **{**good, name: tensor.cpu()})  # type: ignore[arg-type]


def test_sampling_is_not_captured_in_a_graph() -> None:
    model = on_gpu(MODELS["PixelCNN"], torch.float32)
    model.sample(1, SIZE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="sampling cannot be captured in a CUDA graph"):
        model.sample(1, SIZE)
    assert model.sample(1, SIZE).shape == (1, 1, *SIZE)


def test_another_stream() -> None:
    model = on_gpu(MODELS["PixelCNN"], torch.float32)
    expected = model.sample(3, SIZE, generator=torch.Generator().manual_seed(3))
    with torch.cuda.stream(torch.cuda.Stream()):
        drawn = model.sample(3, SIZE, generator=torch.Generator().manual_seed(3))
        assert torch.equal(drawn, expected)
