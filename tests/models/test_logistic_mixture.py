"""The mixture of discretised logistics: against the formula, numerical integration, and its own draws."""

import math
from itertools import product

import mpmath
import numpy
import pytest
import torch
from comparing import assert_accurate
from scipy.integrate import quad
from scipy.stats import logistic
from torch import Tensor

from fused_rnn.models import LogisticMixture
from fused_rnn.models.logistic_mixture import SMALLEST_LOG_SCALE

F64 = torch.float64


def all_pixels(levels: int, channels: int) -> Tensor:
    """Return every pixel that there is, as an image of one column: ``[1, channels, levels ** channels, 1]``."""
    return torch.tensor(list(product(range(levels), repeat=channels))).T[None, :, :, None]


def probabilities(distribution: LogisticMixture, parameters: Tensor) -> Tensor:
    """Return the probability of every pixel from the outputs at one pixel."""
    pixels = all_pixels(distribution.levels, distribution.channels).to(parameters.device)
    outputs = parameters.view(1, -1, 1, 1).expand(1, -1, pixels.size(2), 1)
    return distribution.log_prob(outputs, pixels)[0, :, 0].exp()


def expected_probability(parameters: numpy.ndarray, pixel: tuple[int, ...], levels: int, components: int) -> float:
    """Integrate the density of the mixture over the intervals of a pixel's levels, as the paper writes it."""
    channels = len(pixel)
    rows = parameters.reshape(-1, components)
    scores, means = rows[0], rows[1 : 1 + channels]
    log_scales, coefficients = rows[1 + channels : 1 + 2 * channels], numpy.tanh(rows[1 + 2 * channels :])
    values = [-1 + 2 * level / (levels - 1) for level in pixel]
    total = 0.0
    for component in range(components):
        probability = numpy.exp(scores[component]) / numpy.exp(scores).sum()
        shifts = [0.0] * channels
        if channels == 3:
            (g_by_r, b_by_r, b_by_g), (red, green, _) = coefficients[:, component], values
            shifts = [0, g_by_r * red, b_by_r * red + b_by_g * green]
        for channel, (level, value) in enumerate(zip(pixel, values, strict=True)):
            density = logistic(means[channel, component] + shifts[channel], numpy.exp(log_scales[channel, component]))
            half = 1 / (levels - 1)
            lower = -math.inf if level == 0 else value - half
            upper = math.inf if level == levels - 1 else value + half
            probability *= quad(density.pdf, lower, upper, epsabs=1e-13, epsrel=1e-13)[0]
        total += probability
    return total


@pytest.mark.parametrize(("levels", "channels"), [(2, 1), (9, 1), (3, 3), (4, 2)])
def test_probabilities_add_up_to_one(levels: int, channels: int) -> None:
    distribution = LogisticMixture(3, levels, channels)
    total = probabilities(distribution, torch.randn(distribution.outputs, dtype=F64)).sum()
    assert_accurate(total, torch.ones((), dtype=F64))


@pytest.mark.parametrize(("levels", "channels"), [(5, 1), (3, 3)])
def test_numerical_integration(levels: int, channels: int, device: str) -> None:
    distribution = LogisticMixture(2, levels, channels)
    parameters = torch.randn(distribution.outputs, dtype=F64)
    pixels = list(product(range(levels), repeat=channels))
    expected = [expected_probability(parameters.numpy(), pixel, levels, 2) for pixel in pixels]
    found = probabilities(distribution, parameters.to(device)).cpu()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def log_of_interval(level: int, mean: float, log_scale: float) -> float:
    """Return the logarithm of the probability of one of 256 levels, from the definition in many digits."""
    with mpmath.workdps(150):
        scale = mpmath.exp(max(log_scale, -7))
        value, half = -1 + mpmath.mpf(2 * level) / 255, mpmath.mpf(1) / 255
        lower = -mpmath.inf if level == 0 else (value - half - mpmath.mpf(mean)) / scale
        upper = mpmath.inf if level == 255 else (value + half - mpmath.mpf(mean)) / scale
        if lower > 0:  # the mirror image, where the difference of two numbers close to 1 becomes one of small numbers
            lower, upper = -upper, -lower
        return float(mpmath.log(1 / (1 + mpmath.exp(-upper)) - 1 / (1 + mpmath.exp(-lower))))


def test_numbers_of_outputs() -> None:
    assert LogisticMixture(7, channels=1).outputs == 3 * 7
    assert LogisticMixture(7, channels=3).outputs == 10 * 7
    assert LogisticMixture(7, channels=3).data_channels == LogisticMixture(7, channels=1).data_channels == 1


@pytest.mark.parametrize("log_scale", [-20.0, -7.0, -3.0, 0.0, 5.0, 80.0, 200.0])
@pytest.mark.parametrize("mean", [-1e4, -30.0, -1.0, 0.1, 1.0, 50.0])
def test_extreme_parameters(log_scale: float, mean: float) -> None:
    """The likelihood is accurate and its gradient finite even where sigmoids are 0 or 1 and intervals have no width."""
    levels = torch.tensor([0, 1, 2, 77, 127, 128, 153, 253, 254, 255])
    exact = torch.tensor([log_of_interval(level, mean, log_scale) for level in levels.tolist()], dtype=F64)
    for dtype in (torch.float32, F64):
        outputs = torch.tensor([0.0, mean, log_scale], dtype=dtype).view(1, 3, 1, 1).expand(1, 3, len(levels), 1)
        outputs = outputs.clone().requires_grad_()
        log_prob = LogisticMixture(1, 256, 1).log_prob(outputs, levels.view(1, 1, -1, 1))
        assert_accurate(log_prob[0, :, 0], exact)
        assert torch.autograd.grad(log_prob.sum(), outputs)[0].isfinite().all()


def test_scales_have_a_lower_bound() -> None:
    distribution, images = LogisticMixture(1, 256, 1), torch.full((1, 1, 1, 1), 77)
    found = [
        distribution.log_prob(torch.tensor([0.0, -0.4, log_scale]).view(1, 3, 1, 1), images)
        for log_scale in (SMALLEST_LOG_SCALE, -9.0, -1e9)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_gradients() -> None:
    for channels in (1, 3):
        distribution = LogisticMixture(2, 7, channels)
        images = torch.randint(7, (2, channels, 2, 3))
        outputs = torch.randn(2, distribution.outputs, 2, 3, dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda given, d=distribution, i=images: d.log_prob(given, i), outputs)


def test_draws_have_the_probabilities(device: str) -> None:
    """With a grid of random numbers each pixel is drawn as often as it is probable, up to the spacing of the grid."""
    for levels, channels, spacing in ((4, 1, 400), (3, 2, 60)):
        distribution = LogisticMixture(2, levels, channels)
        parameters = torch.randn(distribution.outputs, dtype=F64)
        grid = (torch.arange(spacing, dtype=F64) + 0.5) / spacing
        uniforms = torch.cartesian_prod(*[grid] * (1 + channels))
        drawn = distribution.draw(parameters.expand(len(uniforms), -1).to(device), uniforms.to(device)).cpu()
        index = sum(drawn[:, channel] * levels ** (channels - 1 - channel) for channel in range(channels))
        assert isinstance(index, Tensor)
        shares = index.bincount(minlength=levels**channels) / len(uniforms)
        assert (shares - probabilities(distribution, parameters)).abs().max() < 2 / spacing


def test_extremes_of_the_random_number() -> None:
    distribution = LogisticMixture(2, 256, 3)
    outputs = torch.randn(1, distribution.outputs)
    assert distribution.draw(outputs, torch.zeros(1, 4)).tolist() == [[0, 0, 0]]
    assert distribution.draw(outputs, torch.full((1, 4), 1 - 2**-53, dtype=F64)).tolist() == [[255, 255, 255]]


def test_temperature() -> None:
    """At 0 it takes the likeliest component's mean, and below 1 draws lie closer to it."""
    distribution = LogisticMixture(2, 101, 1)
    outputs = torch.tensor([[0.0, 1.0, -0.5, 0.2, -2.0, -2.0]])  # the second component is likelier
    assert distribution.draw(outputs, torch.rand(1, 2), 0).item() == 60
    uniforms = torch.tensor([[0.999, 0.9]])
    for temperature in (1.0, 0.5, 0.1):
        value = 0.2 + temperature * math.exp(-2) * math.log(0.9 / 0.1)
        assert distribution.draw(outputs, uniforms, temperature).item() == round(50 * (value + 1))


def test_means_depend_on_the_rounded_levels_before() -> None:
    """At temperature 0 each colour is its mean: its own output plus the levels before it, times their coefficients."""
    red, green, blue, g_by_r, b_by_r, b_by_g = -0.63, 0.6, 0.33, 0.4, -0.7, 0.9
    outputs = torch.tensor([[0.0, red, green, blue, -2.0, -2.0, -2.0, g_by_r, b_by_r, b_by_g]], dtype=F64)

    def level(mean: float) -> int:
        return round(5 * (mean + 1))  # of levels 0 to 10

    r = level(red)
    g = level(green + math.tanh(g_by_r) * (r / 5 - 1))
    b = level(blue + math.tanh(b_by_r) * (r / 5 - 1) + math.tanh(b_by_g) * (g / 5 - 1))
    assert LogisticMixture(1, 11, 3).draw(outputs, torch.rand(1, 4), 0).tolist() == [[r, g, b]]


def test_levels_out_of_range_are_not_silent() -> None:
    distribution = LogisticMixture(2, 7, 1)
    images = torch.tensor([0, 6, 7, -1]).view(1, 1, 2, 2)
    log_prob = distribution.log_prob(torch.randn(1, 6, 2, 2), images)
    assert log_prob.isnan().tolist() == [[[False, False], [True, True]]]


def test_half_precision_is_computed_in_float32() -> None:
    distribution, images = LogisticMixture(2), torch.randint(256, (1, 3, 4, 4), dtype=torch.uint8)
    outputs = torch.randn(1, 20, 4, 4).bfloat16()
    found = distribution.log_prob(outputs, images)
    assert found.dtype == torch.float32
    assert torch.equal(found, distribution.log_prob(outputs.float(), images))


def test_errors() -> None:
    with pytest.raises(ValueError, match="components must be positive"):
        LogisticMixture(0)
    distribution = LogisticMixture(2)
    with pytest.raises(ValueError, match="outputs must have shape"):
        distribution.loss(torch.zeros(1, 21, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="uniforms must have shape"):
        distribution.draw(torch.zeros(1, 20), torch.zeros(1, 2))


def test_repr() -> None:
    assert repr(LogisticMixture(2, channels=1)) == "LogisticMixture(components=2, levels=256, channels=1)"
