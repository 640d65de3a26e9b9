"""What every distribution of the levels of a pixel has: the class :class:`Distribution`."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Distribution(ABC):
    """How the outputs of a network are read as a distribution of the levels of each pixel, for training and drawing.

    An image has integer levels from 0 to ``levels - 1``. The network sees them scaled to the range from -1 to 1.

    A pixel is drawn in ``data_channels`` steps, one for each group of colours of the network's layers. The outputs at
    a pixel are as many contiguous blocks, the first for the first group, and a step needs its own block only.

    Args:
        levels: the number of levels of a channel, such as 256.
        channels: the number of channels of an image, such as 3 for red, green and blue.
        data_channels: the number of groups of colours that the layers of the network must have.
        outputs: the number of output channels that the network must have.
        uniforms: how many random numbers one step consumes.

    Raises:
        ValueError: there are fewer than two levels, or ``channels`` is not positive.
    """

    def __init__(self, levels: int, channels: int, data_channels: int, outputs: int, uniforms: int) -> None:
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        if channels < 1:
            raise ValueError(f"channels must be positive, got {channels}")
        self.levels = levels
        self.channels = channels
        self.data_channels = data_channels
        self.outputs = outputs
        self.uniforms = uniforms
        # The network's input is level * factor + offset.
        self.factor = 2 / (levels - 1)
        self.offset = -1.0

    @abstractmethod
    def log_prob(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the logarithm of each pixel's probability given the pixels before it.

        Args:
            outputs: the network's outputs, ``[batch, outputs, height, width]``.
            images: integer levels, ``[batch, channels, height, width]``.

        Returns:
            ``[batch, height, width]``, in nats, for all channels of a pixel together; float32, or float64 if
            ``outputs`` is.

        Raises:
            ValueError: shapes do not fit.
            TypeError: ``images`` are not integers.
        """

    @abstractmethod
    def draw(self, outputs: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Draw the levels of one pixel, or of one group of colours of it, from given random numbers.

        It computes in float64, so that a result depends on rounding as little as possible.

        Args:
            outputs: the block of outputs of one step at one pixel, ``[batch, outputs // data_channels]``.
            uniforms: random numbers from 0, included, to 1, excluded: ``[batch, self.uniforms]``.
            temperature: below 1 likely levels become likelier; 0 takes the likeliest.

        Returns:
            Integer levels, ``[batch, channels // data_channels]``.

        Raises:
            ValueError: ``temperature`` is negative, NaN or infinite, shapes do not fit, or ``outputs`` contain NaN.
        """

    def scale(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scale integer levels to the range from -1 to 1.

        Args:
            images: levels of any shape.
            dtype: the dtype of the result.

        Returns:
            ``images * factor + offset`` in the shape of ``images``.
        """
        return images.to(dtype) * self.factor + self.offset

    def loss(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of a channel of a pixel, in nats: what training minimises.

        Args:
            outputs: the network's outputs, ``[batch, outputs, height, width]``.
            images: integer levels, ``[batch, channels, height, width]``.

        Returns:
            One number, as a tensor without dimensions.

        Raises:
            ValueError: shapes do not fit.
            TypeError: ``images`` are not integers.
        """
        return -self.log_prob(outputs, images).mean() / self.channels

    def bits_per_dimension(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Return the loss in bits instead of nats, the unit in which the literature compares models of images.

        Args:
            outputs: the network's outputs, ``[batch, outputs, height, width]``.
            images: integer levels, ``[batch, channels, height, width]``.

        Returns:
            One number, as a tensor without dimensions.

        Raises:
            ValueError: shapes do not fit.
            TypeError: ``images`` are not integers.
        """
        return self.loss(outputs, images) / math.log(2)

    def check_images(self, images: Tensor, name: str = "images") -> None:
        """Raise an error if ``images`` are not integers of the shape ``[batch, channels, height, width]``.

        Args:
            images: the tensor to check. Its values are not read.
            name: its name in messages.

        Raises:
            ValueError: the shape does not fit.
            TypeError: the dtype is not one of integers.
        """
        if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
            raise TypeError(f"{name} must be integer levels from 0 to {self.levels - 1}, got {images.dtype}")
        if images.dim() != 4 or images.size(1) != self.channels:
            raise ValueError(
                f"{name} must have shape [batch, {self.channels}, height, width], got {list(images.shape)}"
            )

    def _check_outputs(self, outputs: Tensor, images: Tensor) -> None:
        """Check the arguments of ``log_prob``."""
        self.check_images(images)
        expected = (images.size(0), self.outputs, *images.shape[2:])
        if outputs.shape != expected:
            raise ValueError(f"outputs must have shape {list(expected)} for these images, got {list(outputs.shape)}")

    def _check_draw(self, outputs: Tensor, uniforms: Tensor, temperature: float) -> None:
        """Check the arguments of ``draw``."""
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be a number that is not negative, got {temperature}")
        for name, tensor, size in (
            ("outputs", outputs, self.outputs // self.data_channels),
            ("uniforms", uniforms, self.uniforms),
        ):
            if tensor.dim() != 2 or tensor.size(1) != size:
                raise ValueError(f"{name} must have shape [batch, {size}], got {list(tensor.shape)}")
        if outputs.isnan().any():
            raise ValueError("outputs contain NaN, so there is nothing to draw from")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(levels={self.levels}, channels={self.channels})"


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 if its dtype is of lower precision, as that of an output under autocast may be.

    Args:
        tensor: a tensor of any shape.

    Returns:
        The tensor in float32 or float64.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def inverse_cumulative(scores: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Choose one of several outcomes by the inverse of their cumulative distribution.

    Args:
        scores: logarithms of the probabilities, up to a constant, before ``temperature`` divides them:
            ``[batch, outcomes]``.
        uniforms: random numbers from 0, included, to 1, excluded: ``[batch, 1]``.
        temperature: 0 takes the likeliest outcome, of several the first.

    Returns:
        The index of the first outcome up to which the probabilities add up to more than the random number;
        ``[batch, 1]``.

    Raises:
        ValueError: the largest score is infinite.
    """
    scores = scores.double()
    largest = scores.amax(1, keepdim=True)
    if not largest.isfinite().all():
        raise ValueError("outputs are infinite, so there is nothing to draw from")
    if temperature == 0:
        return scores.argmax(1, keepdim=True)
    # Without the largest score subtracted first, a tiny temperature would make all of them infinite.
    cumulative = torch.softmax((scores - largest) / temperature, 1).cumsum(1)
    # The last sum is 1 up to rounding. Its true value keeps a number close to 1 within the outcomes that can occur.
    return (cumulative <= uniforms.double() * cumulative[:, -1:]).sum(1, keepdim=True)
