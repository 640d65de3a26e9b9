"""The distribution ``Categorical``: a score for every level."""

import torch
from torch import Tensor

from fused_rnn.models.distribution import Distribution, at_least_float32, inverse_cumulative


class Categorical(Distribution):
    """A softmax over all levels of each channel of a pixel.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 2.2. It can have
    any shape, but knows nothing of the order of the levels. Each channel has a step of its own and is drawn given the
    channels before it (equation 2), so the layers of the network have as many groups as an image has channels.

    Args:
        levels: the number of levels of a channel.
        channels: the number of channels of an image.

    Raises:
        ValueError: there are fewer than two levels, or ``channels`` is not positive.

    Example:
        >>> import torch
        >>> from fused_rnn.models import Categorical
        >>> distribution = Categorical(levels=4, channels=3)
        >>> distribution.outputs
        12
        >>> images = torch.randint(4, (2, 3, 5, 5))
        >>> distribution.bits_per_dimension(torch.zeros(2, 12, 5, 5), images)  # all four levels are as likely
        tensor(2.0000)
    """

    def __init__(self, levels: int = 256, channels: int = 1) -> None:
        super().__init__(levels, channels, data_channels=channels, outputs=channels * levels, uniforms=1)

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the scores in the layout of torch.nn.functional.cross_entropy.

        Args:
            outputs: the network's outputs, ``[batch, channels * levels, height, width]``: for each channel its levels.

        Returns:
            ``[batch, levels, channels, height, width]``, of which the softmax over ``levels`` are probabilities; a
            view.
        """
        return outputs.unflatten(1, (self.channels, self.levels)).transpose(1, 2)

    def log_prob(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the logarithm of each pixel's probability given the pixels before it.

        Args:
            outputs: the network's outputs, ``[batch, channels * levels, height, width]``.
            images: integer levels, ``[batch, channels, height, width]``.

        Returns:
            ``[batch, height, width]``, in nats, for all channels of a pixel together; float32, or float64 if
            ``outputs`` is.

        Raises:
            ValueError: shapes do not fit.
            TypeError: ``images`` are not integers.
            RuntimeError: a level is not in the range (on a CPU).
        """
        self._check_outputs(outputs, images)
        logits = self.logits(at_least_float32(outputs))
        return torch.log_softmax(logits, 1).gather(1, images.long()[:, None]).squeeze(1).sum(1)

    def draw(self, outputs: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw the level of one channel of one pixel: the inverse of its cumulative distribution, level by level.

        Args:
            outputs: the scores of the channel at the pixel, ``[batch, levels]``. They are divided by ``temperature``.
            uniforms: random numbers from 0, included, to 1, excluded: ``[batch, 1]``.
            temperature: below 1 likely levels become likelier; 0 takes the likeliest, of several the lowest.

        Returns:
            The smallest level up to which the probabilities add up to more than the random number; ``[batch, 1]``.

        Raises:
            ValueError: ``temperature`` is negative, NaN or infinite, shapes do not fit, or ``outputs`` contain NaN.
        """
        self._check_draw(outputs, uniforms, temperature)
        return inverse_cumulative(outputs, uniforms, temperature)
