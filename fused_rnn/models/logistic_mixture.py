"""The distribution ``LogisticMixture``: a mixture of logistic distributions, cut into levels."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fused_rnn.models.distribution import Distribution, at_least_float32, inverse_cumulative

SMALLEST_LOG_SCALE = -7.0
"""The lower bound of log-scales, that of the original implementation: it keeps the likelihood finite."""


class Parameters(NamedTuple):
    """The parameters of a mixture. The dimension that counts components comes after those that count the channels."""

    logits: Tensor
    """Scores of the components, ``[batch, components, ...]``."""
    means: Tensor
    """``[batch, channels, components, ...]``, before the earlier channels of the pixel contribute."""
    log_scales: Tensor
    """``[batch, channels, components, ...]``, at least ``SMALLEST_LOG_SCALE``."""
    coefficients: Tensor
    """``[batch, channels * (channels - 1) // 2, components, ...]``, from -1 to 1: by what the value of an earlier
    channel is multiplied and added to a mean. For red, green and blue: G by R, B by R, B by G."""


class LogisticMixture(Distribution):
    """A mixture of discretised logistic distributions: few outputs, and near levels have near probabilities.

    Salimans, Karpathy, Chen and Kingma, "PixelCNN++", ICLR 2017, equations 1 to 3. The probability of a level is that
    of the interval around it. The lowest level takes all that lies below it, and the highest all that lies above. All
    channels of a pixel share the component, and the mean of a channel depends linearly on the values of the channels
    before it. So a pixel is drawn in one step, and the layers of the network need no groups of colours.

    The outputs at a pixel are, each for all components: the score; the means of all channels; the logarithms of their
    scales; and the coefficients, before a hyperbolic tangent. That is ``3 * components`` outputs for one channel and
    ``10 * components`` for three. Means and scales are in the unit of the network's input, from -1 to 1.

    Args:
        components: the number of logistic distributions in the mixture.
        levels: the number of levels of a channel.
        channels: the number of channels of an image.

    Raises:
        ValueError: there are fewer than two levels, or ``components`` or ``channels`` is not positive.

    Example:
        >>> import torch
        >>> from fused_rnn.models import LogisticMixture
        >>> distribution = LogisticMixture(components=5, channels=3)
        >>> distribution.outputs
        50
        >>> images = torch.randint(256, (2, 3, 8, 8))
        >>> distribution.log_prob(torch.randn(2, 50, 8, 8), images).shape
        torch.Size([2, 8, 8])
        >>> distribution.draw(torch.randn(2, 50), torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, components: int = 10, levels: int = 256, channels: int = 3) -> None:
        if components < 1:
            raise ValueError(f"components must be positive, got {components}")
        outputs = components * (1 + 2 * channels + channels * (channels - 1) // 2)
        super().__init__(levels, channels, data_channels=1, outputs=outputs, uniforms=1 + channels)
        self.components = components

    def parameters(self, outputs: Tensor) -> Parameters:
        """Split the outputs of a network into the parameters of the mixture.

        Args:
            outputs: ``[batch, outputs, ...]``.

        Returns:
            The parameters, each with the dimensions of ``outputs`` after the second.
        """
        channels = self.channels
        by_component = outputs.unflatten(1, (-1, self.components))
        scores, means, log_scales, coefficients = by_component.split(
            [1, channels, channels, channels * (channels - 1) // 2], 1
        )
        return Parameters(scores[:, 0], means, log_scales.clamp(min=SMALLEST_LOG_SCALE), coefficients.tanh())

    def log_prob(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the logarithm of each pixel's probability given the pixels before it.

        Args:
            outputs: the network's outputs, ``[batch, outputs, height, width]``.
            images: integer levels, ``[batch, channels, height, width]``.

        Returns:
            ``[batch, height, width]``, in nats, for all channels of a pixel together; float32, or float64 if
            ``outputs`` is. NaN where a level is not in the range.

        Raises:
            ValueError: shapes do not fit.
            TypeError: ``images`` are not integers.
        """
        self._check_outputs(outputs, images)
        logits, means, log_scales, coefficients = self.parameters(at_least_float32(outputs))
        levels = images.long()
        values = self.scale(levels, means.dtype)
        total = torch.log_softmax(logits, 1)
        for channel in range(self.channels):
            mean = means[:, channel]
            for earlier in range(channel):
                mean = mean + coefficients[:, _pair(channel, earlier)] * values[:, earlier, None]
            distance = values[:, channel, None] - mean
            total = total + self._log_interval(distance, log_scales[:, channel], levels[:, channel, None])
        in_range = ((levels >= 0) & (levels < self.levels)).all(1)
        return total.logsumexp(1).masked_fill(~in_range, math.nan)

    def _log_interval(self, distance: Tensor, log_scale: Tensor, level: Tensor) -> Tensor:
        """Return the logarithm of the probability that one logistic distribution gives to the interval of a level.

        The interval from b to a, in units of the scale, has the probability ``sigmoid(a) - sigmoid(b)``. For a narrow
        interval or one far from the mean that difference loses all digits, so it is computed as the product
        ``sigmoid(a) * sigmoid(-b) * (1 - exp(b - a))``, to which it is equal.

        Args:
            distance: from the mean to the value of the level, ``[batch, components, height, width]``.
            log_scale: the logarithm of the scale, in the same shape.
            level: ``[batch, 1, height, width]``.

        Returns:
            The logarithm in the shape of ``distance``.
        """
        half = self.factor / 2
        inverse_scale = torch.exp(-log_scale)
        below_upper = logsigmoid((distance + half) * inverse_scale)
        above_lower = logsigmoid((half - distance) * inverse_scale)
        # log(1 - exp(-width)) as log(width) plus a remainder stays finite when a huge scale rounds the width to zero.
        width = (self.factor * inverse_scale).clamp(min=torch.finfo(log_scale.dtype).tiny)
        log_width = math.log(self.factor) - log_scale + torch.log(-torch.expm1(-width) / width)
        inside = below_upper + above_lower + log_width
        return torch.where(level == 0, below_upper, torch.where(level == self.levels - 1, above_lower, inside))

    def draw(self, outputs: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw the levels of all channels of one pixel.

        The first random number chooses the component, by the inverse of the cumulative distribution of the components;
        one more for each channel chooses its value, by that of the logistic distribution. The value is rounded to the
        nearest level, and the mean of the next channel depends on that level, as it does in the likelihood.

        Args:
            outputs: the outputs at the pixel, ``[batch, outputs]``.
            uniforms: random numbers from 0, included, to 1, excluded: ``[batch, 1 + channels]``.
            temperature: divides the components' scores and multiplies the scales; 0 takes the mean of the likeliest
                component.

        Returns:
            Integer levels, ``[batch, channels]``.

        Raises:
            ValueError: ``temperature`` is negative, NaN or infinite, shapes do not fit, or ``outputs`` contain NaN.
        """
        self._check_draw(outputs, uniforms, temperature)
        logits, *others = self.parameters(outputs.double())
        component = inverse_cumulative(logits, uniforms[:, :1], temperature)
        means, log_scales, coefficients = (
            parameter.gather(2, component[:, None].expand(-1, parameter.size(1), 1))[:, :, 0] for parameter in others
        )
        levels: list[Tensor] = []
        for channel in range(self.channels):
            value = means[:, channel]
            for earlier, level in enumerate(levels):
                value = value + coefficients[:, _pair(channel, earlier)] * self.scale(level, value.dtype)
            if temperature != 0:
                spread = torch.logit(uniforms[:, 1 + channel].double())
                value = value + temperature * log_scales[:, channel].exp() * spread
            levels.append(((value - self.offset) / self.factor).round().clamp(0, self.levels - 1).long())
        return torch.stack(levels, 1)

    def __repr__(self) -> str:
        return f"LogisticMixture(components={self.components}, levels={self.levels}, channels={self.channels})"


def _pair(channel: int, earlier: int) -> int:
    """Return the index of the coefficient by which an earlier channel contributes to the mean of a channel."""
    return channel * (channel - 1) // 2 + earlier
