"""What every autoregressive model of images has: the class :class:`AutoregressiveImageModel`."""

import math
import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fused_rnn.models.distribution import Distribution
from fused_rnn.models.sampling import SamplingState, check_device, checked_weight, sampling_uniforms


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
            cond: the condition, as in :meth:`fused_rnn.models.AutoregressiveImageModel.forward`.

        Returns:
            One number, as a tensor without dimensions.

        Raises:
            ValueError: as in :meth:`fused_rnn.models.AutoregressiveImageModel.forward`.
            TypeError: ``images`` are not integers.
        """
        return self.distribution.loss(self(images, cond), images)

    def bits_per_dimension(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the loss in bits instead of nats, the unit in which the literature compares models of images.

        Args:
            images: integer levels, ``[batch, channels, height, width]``.
            cond: the condition, as in :meth:`fused_rnn.models.AutoregressiveImageModel.forward`.

        Returns:
            One number, as a tensor without dimensions.

        Raises:
            ValueError: as in :meth:`fused_rnn.models.AutoregressiveImageModel.forward`.
            TypeError: ``images`` are not integers.
        """
        return self.loss(images, cond) / math.log(2)

    def init_state(
        self, batch: int, shape: tuple[int, int] | tuple[int, int, int], cond: Tensor | None = None
    ) -> SamplingState:
        """Return the state before the first pixel, from which ``step`` goes on.

        Each layer keeps the rows that it reads again. The weights are packed here, so that later changes of them have
        no effect on the state.

        Args:
            batch: the number of images.
            shape: height and width, or channels, height and width.
            cond: the condition of each image, if the model has one, as in ``forward``.

        Returns:
            The state.

        Raises:
            ValueError: a shape does not fit, or the network cannot be evaluated pixel by pixel.
            NotImplementedError: the weights are not on the CPU or an NVIDIA GPU, or not float32 or float64.
            RuntimeError: a CUDA graph is being captured.
        """
        height, width = self._image_size(batch, shape)
        return SamplingState(self, batch, height, width, cond)

    @torch.no_grad()
    def step(self, state: SamplingState, levels: Tensor | None = None) -> Tensor:
        """Compute the distribution of the next pixel, or of the next group of colours at the same pixel.

        On the CPU the result is what ``forward`` computes for the whole image, bit for bit, at any batch size and
        with any number of threads. So an encoder and a decoder that use it agree exactly. On a GPU it agrees with
        ``forward`` up to rounding, and bit for bit only with itself: at any batch size, on the same kind of GPU.

        Args:
            state: what ``init_state`` returned; it changes.
            levels: the levels of the previous step, ``[batch, channels / data_channels]``, on any device; None at the
                first step.

        Returns:
            ``[batch, outputs / data_channels]``.

        Raises:
            ValueError: ``levels`` are missing or do not fit, or all pixels have been computed.

        Example:
            >>> import torch
            >>> from fused_rnn.models import Categorical, PixelCNN
            >>> model = PixelCNN(channels=8, blocks=1, distribution=Categorical(levels=4)).eval()
            >>> state, levels, images = model.init_state(2, (3, 3)), None, torch.zeros(2, 1, 3, 3, dtype=torch.long)
            >>> for row in range(3):
            ...     for column in range(3):
            ...         levels = model.step(state, levels).argmax(1, keepdim=True)
            ...         images[:, :, row, column] = levels
            >>> torch.equal(images, model.sample(2, (3, 3), temperature=0))
            True
        """
        return state.step(levels)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        shape: tuple[int, int] | tuple[int, int, int],
        cond: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        observed: Tensor | None = None,
        observed_mask: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw images pixel by pixel, in raster order, each pixel given those before it.

        :func:`fused_rnn.reference.sample` is the definition, and computes the whole image for every pixel. Here each
        layer keeps what it reads again, and all layers run in one native call a row.

        Args:
            n: the number of images.
            shape: height and width, or channels, height and width.
            cond: the condition of each image, if the model has one, as in ``forward``.
            temperature: below 1 likely levels become likelier; 0 takes the likeliest.
            generator: the source of random numbers, on the CPU or on the device of the model; None for PyTorch's own
                on the CPU. The same numbers give the same images on every device, but where rounding decides.
            observed: levels ``[n, channels, height, width]`` on the device of the model, of which some are kept.
            observed_mask: which pixels of ``observed`` are kept: boolean ``[n, height, width]`` or ``[height, width]``,
                on the same device.
            progress: whether to show the progress on the standard error output.

        Returns:
            Integer levels, ``[n, channels, height, width]``, on the device of the model.

        Raises:
            ValueError: a shape does not fit, ``temperature`` is negative, observed levels are out of range, only one of
                ``observed`` and ``observed_mask`` is given, a tensor or ``generator`` is on another device, the model
                is in training mode with dropout, or its network cannot be evaluated pixel by pixel or computes NaN.
            TypeError: ``observed`` are not integers, or ``observed_mask`` is not boolean.
            NotImplementedError: the weights are not on the CPU or an NVIDIA GPU, or not float32 or float64.
            RuntimeError: a CUDA graph is being captured.

        Example:
            >>> import torch
            >>> from fused_rnn.models import Categorical, PixelCNN
            >>> model = PixelCNN(channels=8, blocks=1, distribution=Categorical(levels=4)).eval()
            >>> model.sample(2, (6, 6), generator=torch.Generator().manual_seed(0)).shape
            torch.Size([2, 1, 6, 6])
        """
        height, width = self._image_size(n, shape)
        if not temperature >= 0 or math.isinf(temperature):
            raise ValueError(f"temperature must be a number that is not negative, got {temperature}")
        device = checked_weight(self).device
        if generator is not None and generator.device.type != "cpu" and generator.device != device:
            raise ValueError(f"generator must be on the CPU or on {device}, got one on {generator.device}")
        for name, tensor in (("cond", cond), ("observed", observed), ("observed_mask", observed_mask)):
            check_device(name, tensor, device)
        images, kept = self._observed(n, height, width, observed, observed_mask)
        state = SamplingState(self, n, height, width, cond)
        uniforms = sampling_uniforms(self, n, height, width, generator)
        for row in range(height):
            state.draw_row(images, kept, uniforms, temperature)
            if progress:
                print(f"\rrow {row + 1} of {height}", end="" if row + 1 < height else "\n", file=sys.stderr, flush=True)
        return images

    def _image_size(self, n: int, shape: tuple[int, ...]) -> tuple[int, int]:
        """Check the number and the shape of images, and return height and width."""
        channels = self.distribution.channels
        if n < 0:
            raise ValueError(f"the number of images must not be negative, got {n}")
        if len(shape) not in (2, 3) or min(shape) < 1 or (len(shape) == 3 and shape[0] != channels):
            raise ValueError(f"shape must be (height, width) or ({channels}, height, width), got {tuple(shape)}")
        return shape[-2], shape[-1]

    def _observed(
        self, n: int, height: int, width: int, observed: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Check observed pixels, and return the images that contain them, and which pixels they are."""
        channels, levels = self.distribution.channels, self.distribution.levels
        if (observed is None) != (mask is None):
            raise ValueError("observed and observed_mask must be given together")
        if observed is None or mask is None:
            device = checked_weight(self).device
            return torch.zeros(n, channels, height, width, dtype=torch.int64, device=device), None
        self.distribution.check_images(observed, "observed")
        if mask.dtype != torch.bool:
            raise TypeError(f"observed_mask must be boolean, got {mask.dtype}")
        if observed.shape != (n, channels, height, width):
            raise ValueError(f"observed must have shape {[n, channels, height, width]}, got {list(observed.shape)}")
        if mask.shape not in ((n, height, width), (height, width)):
            raise ValueError(f"observed_mask must have shape {[n, height, width]}, got {list(mask.shape)}")
        kept = mask.expand(n, height, width).contiguous()
        images = torch.where(kept[:, None], observed.long(), 0).contiguous()
        if images.numel() and (int(images.min()) < 0 or int(images.max()) >= levels):
            raise ValueError(f"observed levels must be from 0 to {levels - 1}")
        return images, kept
