"""Sampling: the steps of a model compute what the whole image gives, bit for bit, and draw by the definition."""

import math
import subprocess
import sys

import pytest
import torch
from comparing import assert_accurate
from image_models import MODELS, SIZE, Halves, condition, dense_outputs, gated, random_images, stepped_outputs
from torch import nn

from fused_rnn import MaskedConv2d, reference
from fused_rnn.models import AutoregressiveImageModel, Categorical, LogisticMixture, PixelCNN
from fused_rnn.models.sampling import SamplingState

F64 = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_steps_compute_what_the_whole_image_gives(name: str, batch: int, dtype: torch.dtype) -> None:
    model = MODELS[name].to(dtype)
    images, cond = random_images(model, batch), condition(model, batch)
    with torch.no_grad():
        whole = model(images, cond)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(stepped_outputs(model, images, cond), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 40)], ids=str)
def test_steps_at_other_sizes(size: tuple[int, int]) -> None:
    model = MODELS["gated, mixture"].float()
    images = random_images(model, 2, size)
    with torch.no_grad():
        assert torch.equal(stepped_outputs(model, images, None), model(images))


def test_the_model_of_the_steps_is_that_of_float64() -> None:
    """The oracle is computed by dense convolutions, so it shares no kernel with the steps."""
    model = MODELS["gated, with classes"].float()
    images, cond = random_images(model, 2), condition(model, 2)
    exact, peer = (dense_outputs(model, images, cond, dtype) for dtype in (F64, torch.float32))
    assert_accurate(stepped_outputs(model, images, cond), exact, peer)


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", MODELS)
def test_draws_are_those_of_the_definition(name: str, temperature: float) -> None:
    torch.set_num_threads(2)
    model, batch = MODELS[name].double(), 3
    distribution, cond = model.distribution, condition(model, 3)
    shape = (batch, *SIZE, distribution.data_channels, distribution.uniforms)
    generator = torch.Generator().manual_seed(5)
    uniforms = torch.rand(shape, dtype=F64, generator=generator)
    observed, mask = random_images(model, batch), torch.rand(batch, *SIZE) < 0.3
    drawn = model.sample(batch, SIZE, cond, temperature, torch.Generator().manual_seed(5))
    assert torch.equal(drawn, reference.sample(model, uniforms, cond, temperature))
    completed = model.sample(
        batch, (distribution.channels, *SIZE), cond, temperature, torch.Generator().manual_seed(5), observed, mask
    )
    assert torch.equal(completed, reference.sample(model, uniforms, cond, temperature, observed, mask))
    assert torch.equal(completed.movedim(1, -1)[mask], observed.movedim(1, -1)[mask])


def test_a_mask_for_all_images() -> None:
    model = MODELS["PixelCNN"].float()
    observed, mask = random_images(model, 4), torch.zeros(SIZE, dtype=torch.bool)
    mask[:3] = True
    drawn = model.sample(4, SIZE, observed=observed, observed_mask=mask)
    assert torch.equal(drawn[:, :, :3], observed[:, :, :3])
    assert not torch.equal(drawn[:, :, 3:], observed[:, :, 3:])


def test_a_distribution_of_ones_own() -> None:
    model = AutoregressiveImageModel(gated(3), Halves(6, 3)).eval()
    uniforms = torch.rand(2, *SIZE, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(1))
    observed, mask = random_images(model, 2), torch.rand(2, *SIZE) < 0.3
    drawn = model.sample(2, SIZE, None, 1.0, torch.Generator().manual_seed(1), observed, mask)
    assert torch.equal(drawn, reference.sample(model, uniforms, None, 1.0, observed, mask))


def test_frequencies_are_the_probabilities() -> None:
    """Of many images of one pixel, each level is drawn as often as its probability says."""
    torch.set_num_threads(2)
    model, count = PixelCNN(4, 0, Categorical(7)).eval(), 40_000
    with torch.no_grad():
        model.network[-1].bias.copy_(torch.randn(7))
        probabilities = model(torch.zeros(1, 1, 1, 1, dtype=torch.long)).softmax(1).flatten()
    drawn = model.sample(count, (1, 1), generator=torch.Generator().manual_seed(0)).flatten()
    frequencies = torch.bincount(drawn, minlength=7) / count
    deviations = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((frequencies - probabilities).abs() < 4 * deviations).all()


def test_an_image_does_not_depend_on_the_others() -> None:
    """A decoder that draws one image gets what an encoder of a batch has seen."""
    model, generator = MODELS["PixelCNN"].float(), torch.Generator()
    torch.set_num_threads(2)
    many = model.sample(5, SIZE, generator=generator.manual_seed(3))
    few = model.sample(2, SIZE, generator=generator.manual_seed(3))
    assert torch.equal(many[:2], few)


@pytest.mark.parametrize(("name", "wrong"), [
    ("n", {"n": -1}), ("shape", {"shape": (5,)}), ("shape", {"shape": (0, 5)}), ("shape", {"shape": (3, 5, 5)}),
    ("cond", {"cond": torch.zeros(2, dtype=torch.long)}), ("temperature", {"temperature": -1.0}),
    ("temperature", {"temperature": math.nan}), ("temperature", {"temperature": math.inf}),
    ("observed and observed_mask", {"observed": torch.zeros(2, 1, 6, 5, dtype=torch.long)}),
    ("observed", {"observed": torch.zeros(2, 1, 5, 5, dtype=torch.long), "observed_mask": torch.ones(6, 5) > 0}),
    ("observed levels", {"observed": torch.full((2, 1, 6, 5), 5), "observed_mask": torch.ones(6, 5) > 0}),
    ("observed levels", {"observed": -torch.ones(2, 1, 6, 5).long(), "observed_mask": torch.ones(6, 5) > 0}),
    ("observed_mask", {"observed": torch.zeros(2, 1, 6, 5, dtype=torch.long), "observed_mask": torch.ones(5, 6) > 0}),
])  # fmt: skip
def test_wrong_values_are_named(name: str, wrong: dict[str, object]) -> None:
    arguments = {"n": 2, "shape": SIZE, **wrong}
    pattern = "number of images" if name == "n" else f"^{name}"
    with pytest.raises(ValueError, match=pattern):
        MODELS["PixelCNN"].float().sample(**arguments)  # type: ignore[arg-type]


def test_wrong_types_are_named() -> None:
    model, levels = MODELS["PixelCNN"].float(), torch.zeros(2, 1, *SIZE, dtype=torch.long)
    with pytest.raises(TypeError, match=r"^observed must be integer levels from 0 to 4, got torch.float32"):
        model.sample(2, SIZE, observed=levels.float(), observed_mask=torch.ones(SIZE) > 0)
    with pytest.raises(TypeError, match=r"^observed_mask must be boolean, got torch.float32"):
        model.sample(2, SIZE, observed=levels, observed_mask=torch.ones(SIZE))
    with pytest.raises(NotImplementedError, match=r"weights of float32 or float64, got torch.bfloat16"):
        PixelCNN(8, 1).bfloat16().sample(1, SIZE)


@pytest.mark.parametrize(("network", "message"), [
    (nn.Sequential(MaskedConv2d(1, 4, 3, "B")), "sees pixels or channels that are not known yet"),
    (nn.Sequential(MaskedConv2d(1, 8, 3, "A"), nn.Conv2d(8, 4, 1)), "1: Conv2d.*cannot be evaluated pixel by pixel"),
    (nn.Sequential(MaskedConv2d(1, 4, 3, "A"), nn.GroupNorm(1, 4)), "1: GroupNorm.*cannot be evaluated pixel by pixel"),
    (nn.Sequential(nn.ReLU(), MaskedConv2d(1, 4, 3, "A")), "only a masked convolution may read the images"),
    (nn.Sequential(MaskedConv2d(1, 8, 3, "A"), MaskedConv2d(8, 4, 3, "vertical_B")), "vertical_B.*not known yet"),
    (nn.Sequential(MaskedConv2d(1, 4, 3, "A"), nn.Dropout(0.5)), "dropout is random: call model.eval"),
])  # fmt: skip
def test_networks_that_cannot_step(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoregressiveImageModel(network, Categorical(4)).sample(1, SIZE)


def test_colours_must_be_separated_in_every_layer() -> None:
    layers = MaskedConv2d(3, 12, 3, "A", 3), MaskedConv2d(12, 12, 3, "B")
    with pytest.raises(ValueError, match="not known yet"):
        AutoregressiveImageModel(nn.Sequential(*layers), Categorical(4, 3)).sample(1, SIZE)
    layers = MaskedConv2d(3, 12, 3, "A", 3), MaskedConv2d(12, 12, 3, "B", 2)
    with pytest.raises(ValueError, match="data_channels=2, but images are drawn in 3 groups"):
        AutoregressiveImageModel(nn.Sequential(*layers), Categorical(4, 3)).sample(1, SIZE)


@pytest.mark.parametrize("distribution", [Categorical(4), LogisticMixture(2, 4, 1)], ids=repr)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_nothing_is_drawn_from_nan(value: float, distribution: Categorical | LogisticMixture) -> None:
    model = PixelCNN(8, 1, distribution).eval()
    nn.init.constant_(model.network[-1].bias, value)
    with pytest.raises(ValueError, match="output is NaN or infinite"):
        model.sample(2, SIZE)


def test_levels_of_a_step() -> None:
    model = MODELS["three colours"].float()
    state = model.init_state(2, SIZE)
    with pytest.raises(ValueError, match="levels of the previous step must be given from the second step on"):
        model.step(state, torch.zeros(2, 1, dtype=torch.long))
    model.step(state)
    with pytest.raises(ValueError, match=r"levels must have shape \[2, 1\], got \[2, 3\]"):
        model.step(state, torch.zeros(2, 3, dtype=torch.long))


def test_no_images() -> None:
    model = MODELS["PixelCNN"].float()
    assert model.sample(0, SIZE).shape == (0, 1, *SIZE)


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    MODELS["PixelCNN"].float().sample(1, (3, 2), progress=True)
    captured = capsys.readouterr()
    assert not captured.out
    assert "row 3 of 3" in captured.err


INTERRUPTED = """
import signal, threading, torch
from fused_rnn.models import Categorical, PixelCNN
model = PixelCNN(64, 4, Categorical(16)).eval()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background is started without it
threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
try:
    model.sample(16, (2000, 64))
except KeyboardInterrupt:
    print(model.sample(1, (4, 4)).shape)
"""


def test_ctrl_c_leaves_a_usable_process() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 1, 4, 4])"


def test_steps_do_not_see_later_changes_of_weights() -> None:
    """The documentation of init_state says so: a state has packed the weights."""
    model = PixelCNN(8, 1, Categorical(4)).eval()
    state = SamplingState(model, 1, 2, 2, None)
    before = state.step(None)
    nn.init.zeros_(model.network[0].weight)
    with torch.no_grad():
        assert torch.equal(before, model(torch.zeros(1, 1, 2, 2, dtype=torch.long))[:, :, 0, 0])
