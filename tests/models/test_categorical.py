"""The categorical distribution: likelihood against cross_entropy, drawing against the probabilities."""

import math

import pytest
import torch
from comparing import assert_accurate
from torch.nn.functional import cross_entropy

from fused_rnn.models import Categorical


def test_likelihood(device: str) -> None:
    distribution = Categorical(5, 3)
    outputs = torch.randn(2, 15, 4, 6, dtype=torch.float64, device=device)
    images = torch.randint(5, (2, 3, 4, 6), device=device)
    found = distribution.log_prob(outputs, images)
    expected = torch.zeros(2, 4, 6, dtype=torch.float64, device=device)
    for channel in range(3):
        expected -= cross_entropy(outputs[:, 5 * channel : 5 * channel + 5], images[:, channel], reduction="none")
    assert_accurate(found, expected)
    assert_accurate(distribution.loss(outputs, images), -expected.mean() / 3)
    assert_accurate(distribution.bits_per_dimension(outputs, images), -expected.mean() / 3 / math.log(2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_dtypes(dtype: torch.dtype) -> None:
    distribution, images = Categorical(), torch.tensor([0, 255, 7, 128]).view(1, 1, 2, 2)
    outputs = torch.randn(1, 256, 2, 2).bfloat16()
    expected = distribution.log_prob(outputs.double(), images)
    found = distribution.log_prob(outputs, images.to(dtype))
    assert found.dtype == torch.float32
    assert_accurate(found, expected)
    assert torch.equal(distribution.scale(images.to(dtype)), images / 127.5 - 1)


def test_uniform_is_levels_bits() -> None:
    images = torch.randint(8, (2, 3, 4, 4))
    bits = Categorical(8, 3).bits_per_dimension(torch.zeros(2, 24, 4, 4, dtype=torch.float64), images)
    assert_accurate(bits, torch.tensor(3.0, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_probabilities(temperature: float, device: str) -> None:
    """Evenly spaced random numbers give each level as often as it is probable, up to one at each end."""
    scores, count = torch.randn(6, dtype=torch.float64), 10_000
    scores[2] = -math.inf
    uniforms = torch.arange(count, dtype=torch.float64)[:, None] / count
    drawn = Categorical(6).draw(scores.expand(count, 6).to(device), uniforms.to(device), temperature).cpu()
    assert drawn.shape == (count, 1)
    assert (drawn.diff(dim=0) >= 0).all()
    weights = (scores / temperature).exp()
    assert ((drawn == torch.arange(6)).sum(0) - count * weights / weights.sum()).abs().max() <= 1
    assert not (drawn == 2).any()


def test_extremes_of_the_random_number() -> None:
    scores = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf]])
    last = torch.tensor([[1 - 2**-24]])
    assert Categorical(4).draw(scores, torch.zeros(1, 1)).item() == 1
    assert Categorical(4).draw(scores, last).item() == 2
    # Rounding must not lead beyond the levels that can occur.
    many = torch.cat([torch.randn(1000, 255), torch.full((1000, 1), -math.inf)], 1)
    assert Categorical(256).draw(many, last.expand(1000, 1)).max() == 254


def test_temperature_zero_takes_the_likeliest() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    uniforms = torch.tensor([[0.4], [0.99]])
    assert Categorical(3).draw(scores, uniforms, 0).tolist() == [[1], [0]]
    assert Categorical(3).draw(scores, uniforms, 5e-324).tolist() == [[1], [0]]


def test_errors() -> None:
    distribution, outputs = Categorical(4, 3), torch.zeros(2, 12, 5, 5)
    with pytest.raises(TypeError, match="images must be integer levels from 0 to 3"):
        distribution.loss(outputs, torch.rand(2, 3, 5, 5))
    for shape in ((2, 1, 5, 5), (3, 5, 5)):
        with pytest.raises(ValueError, match="images must have shape"):
            distribution.loss(outputs, torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match="outputs must have shape"):
        distribution.loss(outputs, torch.zeros(2, 3, 5, 6, dtype=torch.int64))
    for level in (-1, -100, 4):
        with pytest.raises(RuntimeError, match="out of bounds"):
            distribution.loss(outputs, torch.full((2, 3, 5, 5), level))
    with pytest.raises(ValueError, match="levels must be at least 2"):
        Categorical(1)
    with pytest.raises(ValueError, match="channels must be positive"):
        Categorical(2, 0)
    for temperature in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be a number that is not negative"):
            distribution.draw(torch.zeros(1, 4), torch.zeros(1, 1), temperature)
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="outputs contain NaN"):
            distribution.draw(torch.tensor([[0.0, math.nan, 1.0, 0.0]]), torch.zeros(1, 1), temperature)
        for scores in ([math.inf, 0.0, 0.0, 0.0], [-math.inf] * 4):
            with pytest.raises(ValueError, match="outputs are infinite"):
                distribution.draw(torch.tensor([scores]), torch.zeros(1, 1), temperature)
    with pytest.raises(ValueError, match="outputs must have shape"):
        distribution.draw(torch.zeros(1, 12), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="uniforms must have shape"):
        distribution.draw(torch.zeros(1, 4), torch.zeros(1))


def test_repr() -> None:
    assert repr(Categorical(4, 3)) == "Categorical(levels=4, channels=3)"
