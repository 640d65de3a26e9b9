"""Draws images pixel by pixel, each layer of the model keeping what it reads again: the state of sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_rnn.functional.pixel_network import Draw, DrawnFrom, PixelState
from fused_rnn.models.categorical import Categorical
from fused_rnn.models.logistic_mixture import LogisticMixture
from fused_rnn.models.tracing import trace

if TYPE_CHECKING:
    from fused_rnn.models.base import AutoregressiveImageModel

KERNELS = {Categorical: DrawnFrom.CATEGORICAL, LogisticMixture: DrawnFrom.LOGISTIC_MIXTURE}
"""The distributions from which the kernel draws by itself; from all others their method ``draw`` does."""


class SamplingState:
    """The state of a model between two pixels.

    :meth:`fused_rnn.models.AutoregressiveImageModel.init_state` returns it.

    Args:
        model: the model.
        batch: the number of images.
        height: their height.
        width: their width.
        cond: the condition of each image, if the model has one.

    Raises:
        ValueError: the network of the model cannot be evaluated pixel by pixel.
        NotImplementedError: the weights are not on the CPU or an NVIDIA GPU, or not float32 or float64.
        RuntimeError: a CUDA graph is being captured.
    """

    @torch.no_grad()
    def __init__(
        self, model: AutoregressiveImageModel, batch: int, height: int, width: int, cond: Tensor | None
    ) -> None:
        weight = checked_weight(model)
        check_device("cond", cond, weight.device)
        self.distribution = model.distribution
        condition = model.condition(cond, batch, weight.dtype)
        network = trace(
            model.network,
            self.distribution.channels,
            self.distribution.data_channels,
            (batch, height, width),
            *(() if condition is None else (condition,)),
        )
        self.pixels = PixelState(network, batch, height, width)
        self.scaled = self.distribution.scale(
            torch.arange(self.distribution.levels, device=weight.device), weight.dtype
        )

    def step(self, levels: Tensor | None) -> Tensor:
        """Take the levels of the previous step, and return the outputs of the next one; see ``step`` of the model."""
        pixels, groups = self.pixels, self.distribution.data_channels
        if (levels is None) != (pixels.step == 0):
            raise ValueError("levels of the previous step must be given from the second step on, and not before")
        if levels is not None:
            channels = self.distribution.channels // groups
            if levels.shape != (pixels.batch, channels):
                raise ValueError(f"levels must have shape {[pixels.batch, channels]}, got {list(levels.shape)}")
            begin = (pixels.step - 1) % groups * channels
            pixels.pixel(0, pixels.step - 1)[:, begin : begin + channels] = self.scaled[
                levels.to(self.scaled.device, torch.long)
            ]
        pixels.advance(1)
        return pixels.pixel(pixels.output, pixels.step - 1).chunk(groups, 1)[(pixels.step - 1) % groups].clone()

    def draw_row(self, images: Tensor, observed: Tensor | None, uniforms: Tensor, temperature: float) -> None:
        """Draw the next row of pixels into ``images``; see :func:`fused_rnn.reference.sample` for the arguments."""
        pixels, distribution = self.pixels, self.distribution
        steps = pixels.width * distribution.data_channels
        kernel = KERNELS.get(type(distribution))
        if kernel is not None:
            factor, offset = distribution.factor, distribution.offset
            draw = Draw(kernel, images, observed, uniforms, self.scaled, factor, offset, temperature)
            pixels.advance(steps, draw=draw)
            return
        for step in range(pixels.step, pixels.step + steps):
            row, column = pixels.position(step)
            group = step % distribution.data_channels
            levels = distribution.draw(self._next(images, step), uniforms[:, row, column, group], temperature)
            pixel = self._levels(images, step)
            kept = False if observed is None else observed[:, row, column, None]
            pixel.copy_(torch.where(torch.as_tensor(kept), pixel, levels))

    def _next(self, images: Tensor, step: int) -> Tensor:
        """Return the outputs of a step, given all levels before it."""
        return self.step(None if step == 0 else self._levels(images, step - 1))

    def _levels(self, images: Tensor, step: int) -> Tensor:
        """Return the levels that belong to a step, ``[batch, channels / data_channels]``: a part of ``images``."""
        row, column = self.pixels.position(step)
        groups = self.distribution.data_channels
        return images[:, :, row, column].chunk(groups, 1)[step % groups]


def checked_weight(model: AutoregressiveImageModel) -> Tensor:
    """Return one of a model's weights, which has the device and the dtype of sampling, or raise why there is none.

    Args:
        model: the model.

    Returns:
        The weight.

    Raises:
        NotImplementedError: it is not on the CPU or an NVIDIA GPU, or not float32 or float64.
        RuntimeError: a CUDA graph is being captured.
    """
    weight = next(model.network.parameters())
    if weight.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(
            f"sampling needs a model on the CPU or an NVIDIA GPU, got one on {weight.device}: call model.cpu() first"
        )
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("sampling cannot be captured in a CUDA graph")
    if weight.dtype not in (torch.float32, torch.float64):
        raise NotImplementedError(f"sampling needs weights of float32 or float64, got {weight.dtype}")
    return weight


def check_device(name: str, tensor: Tensor | None, device: torch.device) -> None:
    """Raise an error if there is a tensor and it is not where the model is.

    Args:
        name: the name of the argument.
        tensor: the argument.
        device: the device of the model.

    Raises:
        ValueError: the tensor is on another device.
    """
    if tensor is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, like the model, got one on {tensor.device}")


def sampling_uniforms(
    model: AutoregressiveImageModel, batch: int, height: int, width: int, generator: torch.Generator | None
) -> Tensor:
    """Return the random numbers that images consume: those of each image together, so that a batch can be divided.

    They come from the device of the generator, by default the CPU, so that a seed means the same on every device.
    """
    distribution = model.distribution
    shape = (batch, height, width, distribution.data_channels, distribution.uniforms)
    source = "cpu" if generator is None else generator.device
    uniforms = torch.rand(shape, dtype=torch.float64, generator=generator, device=source)
    return uniforms.to(checked_weight(model).device)
