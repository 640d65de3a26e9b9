"""What every autoregressive model of images has: the class :class:`AutoregressiveImageModel`."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fused_rnn.models.distribution import Distribution


class AutoregressiveImageModel(nn.Module):
    """A model that factorises the probability of an image into those of its pixels, each given the pixels before it.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, equation 1. Pixels are in
    raster order: row by row, each from left to right. The network scores all pixels in one pass, each from the pixels
    before it only, which :func:`fused_rnn.check_autoregressive` verifies.

    Args:
        network: maps scaled images ``[batch, channels, height, width]`` to ``[batch, distribution.outputs, height,
            width]``; if ``condition_size`` is not 0, it takes a condition ``[batch, condition_size]`` too. It must be
            autoregressive in ``distribution.data_channels`` groups of colours. Its weights are converted to
            channels_last, the faster memory format.
        distribution: what the outputs of the network mean.
        condition_size: the length of the vector on which images depend, such as the number of classes; 0 for none.

    Attributes:
        network: the network.
        distribution: the distribution.
        condition_size: the length of the condition.

    Raises:
        ValueError: ``condition_size`` is negative.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fused_rnn import MaskedConv2d
        >>> from fused_rnn.models import AutoregressiveImageModel, Categorical
        >>> network = nn.Sequential(MaskedConv2d(1, 8, 3, "A"), nn.ReLU(), MaskedConv2d(8, 4, 3, "B"))
        >>> model = AutoregressiveImageModel(network, Categorical(levels=4))
        >>> model(torch.randint(4, (2, 1, 6, 6))).shape
        torch.Size([2, 4, 6, 6])
    """

    def __init__(self, network: nn.Module, distribution: Distribution, condition_size: int = 0) -> None:
        if condition_size < 0:
            raise ValueError(f"condition_size must not be negative, got {condition_size}")
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.distribution = distribution
        self.condition_size = condition_size

    def forward(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Compute the parameters of the distribution of every pixel given the pixels before it.

        Args:
            images: integer levels from 0 to ``distribution.levels - 1``, ``[batch, channels, height, width]``.
            cond: the condition of each image if the model has one: class labels ``[batch]`` of an integer dtype, or
                vectors ``[batch, condition_size]``.

        Returns:
            ``[batch, distribution.outputs, height, width]``. The distribution says what they mean.

        Raises:
            ValueError: a shape does not fit, or there is a condition where the model has none, or the reverse.
            TypeError: ``images`` are not integers.
        """
        self.distribution.check_images(images)
        dtype = next(self.network.parameters()).dtype
        scaled = self.distribution.scale(images, dtype)
        condition = self.condition(cond, images.size(0), dtype)
        return self.network(scaled) if condition is None else self.network(scaled, condition)

    def condition(self, cond: Tensor | None, batch: int, dtype: torch.dtype) -> Tensor | None:
        """Check a condition, and turn class labels into vectors.

        Args:
            cond: labels ``[batch]``, vectors ``[batch, condition_size]``, or None.
            batch: the number of images.
            dtype: the dtype of the result.

        Returns:
            ``[batch, condition_size]``, or None if the model has no condition.

        Raises:
            ValueError: the shape does not fit, or there is a condition where the model has none, or the reverse.
        """
        if (cond is None) != (self.condition_size == 0):
            has = f"of size {self.condition_size}" if self.condition_size else "none"
            raise ValueError(
                f"cond is {'missing' if cond is None else 'given'}, but the condition of the model is {has}"
            )
        if cond is None:
            return None
        if not cond.is_floating_point():
            if cond.shape != (batch,):
                raise ValueError(f"cond of class labels must have shape [{batch}], got {list(cond.shape)}")
            return one_hot(cond.long(), self.condition_size).to(dtype)
        if cond.shape != (batch, self.condition_size):
            raise ValueError(f"cond must have shape {[batch, self.condition_size]}, got {list(cond.shape)}")
        return cond.to(dtype)

    def loss(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean negative log-likelihood of a channel of a pixel, in nats: what training minimises.

        Args:
            images: integer levels, ``[batch, channels, height, width]``.
            cond: the condition, as in :meth:`forward`.

        Returns:
            One number, as a tensor without dimensions.

        Raises:
            ValueError: as in :meth:`forward`.
            TypeError: ``images`` are not integers.
        """
        return self.distribution.loss(self(images, cond), images)

    def bits_per_dimension(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the loss in bits instead of nats, the unit in which the literature compares models of images.

        Args:
            images: integer levels, ``[batch, channels, height, width]``.
            cond: the condition, as in :meth:`forward`.

        Returns:
            One number, as a tensor without dimensions.

        Raises:
            ValueError: as in :meth:`forward`.
            TypeError: ``images`` are not integers.
        """
        return self.loss(images, cond) / math.log(2)
