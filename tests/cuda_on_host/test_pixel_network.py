"""The CUDA kernel that evaluates networks pixel by pixel, on the CPU."""

import pytest
import torch
from comparing import assert_accurate
from convolution_cases import ConvolutionCase
from image_models import MODELS, SIZE, condition, dense_outputs, random_images, stepped_outputs
from pixel_networks import FEW_PIXELS, network_of, network_of_copies, network_of_operations, stepped, vertical_network
from torch import nn

from cuda_on_host.build import build
from cuda_on_host.pixels import Pixels
from fused_rnn import reference
from fused_rnn.functional.pixel_network import PixelState
from fused_rnn.models import Categorical, LogisticMixture, PixelCNN

F64 = torch.float64


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    return Pixels(build())


@pytest.fixture(params=[132, 1])
def state_type(pixels: Pixels, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[PixelState]:
    """Let models be evaluated by the kernel: each block has one image, or as many as it can have."""
    state = pixels.state_type(request.param)
    monkeypatch.setattr("fused_rnn.models.sampling.PixelState", state)
    return state


@pytest.mark.parametrize(("dtype", "multiprocessors"), [(torch.float32, 1), (F64, 132)], ids=str)
@pytest.mark.parametrize("case", [*FEW_PIXELS, ConvolutionCase(2, 1030, (1, 3), size=(1, 3), batch=1)], ids=str)
def test_convolutions(pixels: Pixels, case: ConvolutionCase, dtype: torch.dtype, multiprocessors: int) -> None:
    state_type = pixels.state_type(multiprocessors)
    input, weight, *bias = case.tensors(dtype).values()
    exact, peer = case.oracle(*case.tensors(F64).values()), case.oracle(input, weight, *bias)
    assert_accurate(stepped(network_of(case, weight, *bias), input, state_type), exact, peer)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_vertical_stack(state_type: type[PixelState], dtype: torch.dtype) -> None:
    """A convolution of type vertical_B reads values of the row that is being computed, left and right."""
    (network, input, peer), (_, _, exact) = vertical_network(dtype), vertical_network(F64)
    assert_accurate(stepped(network, input, state_type), exact, peer)


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 37])
@pytest.mark.parametrize("groups", [1, 3])
def test_other_operations(state_type: type[PixelState], channels: int, groups: int) -> None:
    network, input, expected = network_of_operations(channels, groups)
    assert_accurate(stepped(network, input, state_type), expected)


def test_copies(state_type: type[PixelState]) -> None:
    network, input, expected = network_of_copies()
    assert_accurate(stepped(network, input, state_type), expected)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_models(state_type: type[PixelState], name: str, dtype: torch.dtype) -> None:
    model = MODELS[name].to(dtype)
    images, cond = random_images(model, 5), condition(model, 5)
    exact = dense_outputs(model, images, cond, F64)
    assert_accurate(stepped_outputs(model, images, cond), exact, dense_outputs(model, images, cond, dtype))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 40)], ids=str)
def test_other_sizes(state_type: type[PixelState], size: tuple[int, int]) -> None:
    model = MODELS["gated, mixture"].double()
    images = random_images(model, 2, size)
    assert_accurate(stepped_outputs(model, images, None), dense_outputs(model, images, None, F64))


@pytest.mark.parametrize("temperature", [0, 1.3])
@pytest.mark.parametrize("name", MODELS)
def test_draws_are_those_of_the_definition(state_type: type[PixelState], name: str, temperature: float) -> None:
    model, batch = MODELS[name].double(), 5
    distribution, cond = model.distribution, condition(model, batch)
    shape = (batch, *SIZE, distribution.data_channels, distribution.uniforms)
    uniforms = torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    drawn = model.sample(batch, SIZE, cond, temperature, torch.Generator().manual_seed(5))
    assert torch.equal(drawn, reference.sample(model, uniforms, cond, temperature))
    observed, mask = random_images(model, batch), torch.rand(batch, *SIZE) < 0.3
    completed = model.sample(batch, SIZE, cond, temperature, torch.Generator().manual_seed(5), observed, mask)
    assert torch.equal(completed, reference.sample(model, uniforms, cond, temperature, observed, mask))


@pytest.mark.parametrize("levels", [2, 31, 32, 33, 256, 1000])
def test_any_number_of_levels(state_type: type[PixelState], levels: int) -> None:
    """Of scores that differ widely, so that many levels have no chance at all."""
    model = PixelCNN(4, 0, Categorical(levels)).double().eval()
    nn.init.normal_(model.network[-1].bias, std=30)
    for seed, temperature in enumerate((0.1, 1.0, 30.0)):
        uniforms = torch.rand(40, 1, 3, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(seed))
        drawn = model.sample(40, (1, 3), None, temperature, torch.Generator().manual_seed(seed))
        assert torch.equal(drawn, reference.sample(model, uniforms, None, temperature))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", ["joined", "gated, three colours"])
def test_bits_depend_neither_on_the_batch_nor_on_the_gpu(
    pixels: Pixels, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name].to(dtype)
    # The size of the first one is given.
    images, cond = random_images(model, 9, SIZE if name == "joined" else (3, 11)), condition(model, 9)
    results = []
    for multiprocessors, batch in ((132, 9), (3, 9), (1, 9), (1, 2)):
        monkeypatch.setattr("fused_rnn.models.sampling.PixelState", pixels.state_type(multiprocessors))
        chosen = None if cond is None else cond[:batch]
        results.append(stepped_outputs(model, images[:batch], chosen))
    assert all(torch.equal(result, results[0][: len(result)]) for result in results)


@pytest.mark.parametrize("seed", range(4))
def test_threads_in_any_order(pixels: Pixels, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fused_rnn.models.sampling.PixelState", pixels.state_type(1))
    model = MODELS["mixture"].double()
    images = random_images(model, 3)
    expected, drawn = dense_outputs(model, images, None, F64), model.sample(3, SIZE, temperature=0)
    pixels.library.choose_schedule(seed)
    assert_accurate(stepped_outputs(model, images, None), expected)
    assert torch.equal(drawn, model.sample(3, SIZE, temperature=0))
    pixels.library.choose_schedule(0)


@pytest.mark.parametrize("seed", range(4))
def test_many_steps_at_once(pixels: Pixels, seed: int) -> None:
    """What is after a pixel must not be read, though it is there already."""
    case = ConvolutionCase(2, 20, (7, 5), "A", size=(4, 6), batch=3)
    input, weight, bias = case.tensors(F64).values()
    pixels.library.choose_schedule(seed)
    state = pixels.state_type(1)(network_of(case, weight, bias), 3, *case.size)
    state.values[0][:, :, state.margin : state.margin + 6] = input.permute(0, 2, 3, 1)
    outputs = torch.full((3, 20, *case.size), torch.nan, dtype=F64)
    state.advance(5, outputs)
    state.advance(state.steps - 5, outputs)
    pixels.library.choose_schedule(0)
    assert_accurate(outputs, case.oracle(input, weight, bias))


@pytest.mark.parametrize("distribution", [Categorical(4), Categorical(90), LogisticMixture(2, 4, 1)], ids=repr)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nothing_is_drawn_from_nan(
    state_type: type[PixelState], value: float, distribution: Categorical | LogisticMixture
) -> None:
    model = PixelCNN(8, 1, distribution).eval()
    nn.init.constant_(model.network[-1].bias, value)
    with pytest.raises(ValueError, match="output is NaN or infinite"):
        model.sample(2, SIZE)


def test_of_several_likeliest_levels_the_lowest_is_drawn(state_type: type[PixelState]) -> None:
    model = PixelCNN(8, 1, Categorical(90)).eval()
    nn.init.zeros_(model.network[-1].weight)
    for likeliest in ([40, 41, 88], [3, 89], [*range(90)]):
        nn.init.zeros_(model.network[-1].bias).data[likeliest] = 1
        assert (model.sample(2, SIZE, temperature=0) == likeliest[0]).all()


@pytest.mark.parametrize("at", [0, 40, 89])
def test_one_nan_is_enough(state_type: type[PixelState], at: int) -> None:
    model = PixelCNN(8, 1, Categorical(90)).eval()
    with torch.no_grad():
        model.network[-1].bias[at] = torch.nan
    with pytest.raises(ValueError, match="output is NaN or infinite"):
        model.sample(2, SIZE)
    with torch.no_grad():
        model.network[-1].bias[at] = -torch.inf
    assert not (model.sample(20, SIZE) == at).any()


def test_how_many_operations_a_network_may_have(pixels: Pixels) -> None:
    """GPUs of compute capability 8.6 have the least shared memory that a block may have, 99 KiB."""
    few, many = (pixels.library.most_pixel_nodes(4, kilobytes * 1024) for kilobytes in (99, 227))
    assert few >= 150
    assert many >= 500
