"""Times how images are drawn pixel by pixel: by a loop over whole passes, with a cache in PyTorch, and by `sample`.

All three draw from the same weights and random numbers. The loop over whole passes takes minutes, so one pass is timed
and multiplied by the number of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from benchmarks.machine import Peak, describe_machine, measure_peak
from benchmarks.problem import FUSED, CheckError
from benchmarks.report import make_progress
from benchmarks.results import Result, Run
from benchmarks.timing import Function, Measurement, time_together
from fused_rnn import MaskedConv2d
from fused_rnn.models import AutoregressiveImageModel, Categorical, PixelCNN
from fused_rnn.models.pixelcnn import ResidualBlock

NAIVE, CACHE = "whole passes", "cache in PyTorch"
TOLERANCE = 1e-4  # of the scores, which are between -1 and 1


@dataclass(frozen=True)
class SamplingCase:
    """Images to draw.

    Attributes:
        name: The network: "8 layers 7x7" or "5 residual blocks".
        filters: The channels of its layers.
        batch: The number of images.
        size: Their height and width.
        levels: The levels of grey.
    """

    name: str
    filters: int
    batch: int
    size: int = 28
    levels: int = 256

    @property
    def group(self) -> str:
        """What the batches of a network have in common."""
        return f"drawing {self.size}x{self.size}, {self.name}, {self.filters} filters"

    @property
    def label(self) -> str:
        """The batch."""
        return f"batch {self.batch}"

    def make_model(self) -> AutoregressiveImageModel:
        """The model, with random weights."""
        torch.manual_seed(0)
        distribution = Categorical(self.levels)
        if self.name == "5 residual blocks":
            return PixelCNN(self.filters, 5, distribution).eval()
        layers: list[nn.Module] = [MaskedConv2d(1, self.filters, 7, "A")]
        for _ in range(7):
            layers += [nn.ReLU(), MaskedConv2d(self.filters, self.filters, 7, "B")]
        head = MaskedConv2d(self.filters, self.levels, 1, "B")
        return AutoregressiveImageModel(nn.Sequential(*layers, nn.ReLU(), head), distribution).eval()


def default_cases() -> list[SamplingCase]:
    """Both networks, and one image, a few and many."""
    networks = (("8 layers 7x7", 64), ("5 residual blocks", 128))
    return [SamplingCase(*network, batch) for network in networks for batch in (1, 16, 64)]


def run_sampling(cases: Sequence[SamplingCase], console: Console, seconds: float) -> Run:
    """Check and time every case.

    Args:
        cases: What to draw.
        console: The console for the progress bar.
        seconds: About how long to time each case; 0 only checks.

    Returns:
        A result for each case.

    Raises:
        CheckError: The ways to draw do not agree.
    """
    run = Run(describe_machine())
    with make_progress(console) as progress, torch.no_grad():
        task = progress.add_task("limits of this machine", total=len(cases))
        peak = measure_peak() if seconds else Peak()
        for case in cases:
            progress.update(task, description=f"{case.group}, {case.label}")
            model = case.make_model()
            check(case, model)
            if seconds:
                run.results.append(_time(case, model, peak, seconds))
            progress.advance(task)
    run.peak_gflops = peak.gflops
    return run


def device_of(model: AutoregressiveImageModel) -> torch.device:
    """The device of a model's weights."""
    return next(model.parameters()).device


def check(case: SamplingCase, model: AutoregressiveImageModel) -> None:
    """Compare the scores of small images: those of dense convolutions, of the cache and of the steps.

    Args:
        case: What is to be drawn.
        model: The model of the case, on any device.

    Raises:
        CheckError: They differ by more than rounding.
    """
    images = torch.randint(case.levels, (2, 1, 5, 5), device=device_of(model))
    whole = dense_pass(model, images)
    state, levels = model.init_state(2, (5, 5)), None
    cache = Cache(model, 2, 5)
    for row in range(5):
        for column in range(5):
            pixel = whole[:, :, row, column]
            for name, scores in ((FUSED, model.step(state, levels)), (CACHE, cache.scores(row, column))):
                difference = (scores - pixel).abs().max().item()
                if not difference <= TOLERANCE:
                    raise CheckError(f"{case.group}: {name} differs by {difference:.1e} from dense convolutions")
            levels = images[:, :, row, column]
            cache.put(row, column, model.distribution.scale(levels))


def _time(case: SamplingCase, model: AutoregressiveImageModel, peak: Peak, seconds: float) -> Result:
    """Time the three ways to draw by turns."""
    times = time_ways(case, ways_to_draw(case, model), seconds)
    operations = operations_of(case, model)
    limit = 1e-9 * operations / max(peak.gflops.values())
    return Result(case.group, case.label, "forward", operations, limit, times)


def ways_to_draw(case: SamplingCase, model: AutoregressiveImageModel) -> dict[str, Function]:
    """Return three ways to draw the images of a case, of which the loop over whole passes makes one pass only.

    Args:
        case: What to draw.
        model: The model of the case, on any device.

    Returns:
        The functions, by name.
    """
    images = torch.randint(case.levels, (case.batch, 1, case.size, case.size), device=device_of(model))
    return {
        FUSED: lambda: model.sample(case.batch, (case.size, case.size)),
        NAIVE: lambda: dense_pass(model, images),
        CACHE: lambda: draw_with_cache(model, case.batch, case.size),
    }


def time_ways(
    case: SamplingCase, ways: dict[str, Function], seconds: float, wait: Function = lambda: None
) -> dict[str, Measurement]:
    """Time ways to draw by turns.

    Args:
        case: What is drawn.
        ways: What :func:`ways_to_draw` returns; names that begin like that of whole passes are such.
        seconds: About how long to time them.
        wait: Returns when the device has finished.

    Returns:
        The times of all images of the case, in each way.
    """
    samples = time_together(ways, seconds, wait)
    passes = {name: case.size**2 if name.startswith(NAIVE) else 1 for name in ways}
    return {name: Measurement.of([passes[name] * each for each in samples[name]]) for name in ways}


def operations_of(case: SamplingCase, model: AutoregressiveImageModel) -> int:
    """The additions and multiplications of active taps inside the images, once for each pixel.

    Args:
        case: The images.
        model: The model that draws them.

    Returns:
        How many there are.
    """
    return sum(
        2 * case.batch * _taps_inside(layer, case.size) * layer.in_channels * layer.out_channels
        for layer in model.modules()
        if isinstance(layer, MaskedConv2d)
    )


def _taps_inside(layer: MaskedConv2d, size: int) -> int:
    """How many pairs of a pixel and an active tap lie inside an image."""
    height, width = layer.kernel_size
    rows, columns = torch.nonzero(layer.mask[0, 0], as_tuple=True)
    return sum(
        (size - abs(row - height // 2)) * (size - abs(column - width // 2))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if max(abs(row - height // 2), abs(column - width // 2)) < size
    )


def _activated(layer: MaskedConv2d, sums: Tensor) -> Tensor:
    """What a layer without a gate makes of its sums."""
    assert layer.activation in (None, "relu")
    return sums.relu() if layer.activation == "relu" else sums


def dense_pass(model: AutoregressiveImageModel, images: Tensor) -> Tensor:
    """One pass over whole images with torch's convolutions, whose masked weights are zero.

    Args:
        model: A model of masked convolutions, ReLU and residual blocks.
        images: Levels `[batch, 1, height, width]`.

    Returns:
        Scores `[batch, levels, height, width]`.
    """

    def apply(module: nn.Module, input: Tensor) -> Tensor:
        if isinstance(module, MaskedConv2d):
            padding = [size // 2 for size in module.kernel_size]
            return _activated(module, conv2d(input, module.weight, module.bias, padding=padding))
        if isinstance(module, ResidualBlock):
            return input + apply(module.last, apply(module.steps, input))
        if isinstance(module, nn.Sequential):
            for layer in module:
                input = apply(layer, input)
            return input
        return module(input)

    scaled = model.distribution.scale(images).to(memory_format=torch.channels_last)
    return apply(model.network, scaled)


class Cache:
    """The inputs of all convolutions of a model, which a loop in Python fills pixel by pixel.

    Args:
        model: A model of masked convolutions, ReLU and residual blocks.
        batch: The number of images.
        size: Their height and width.
    """

    def __init__(self, model: AutoregressiveImageModel, batch: int, size: int) -> None:
        self.network = model.network
        self.inputs: dict[nn.Module, Tensor] = {}
        self.weights: dict[nn.Module, Tensor] = {}
        for layer in model.modules():
            if isinstance(layer, MaskedConv2d):
                above, beside = (length // 2 for length in layer.kernel_size)
                # Pixels are next to their channels, so that the taps of a row are contiguous.
                empty = torch.zeros(batch, size, size, layer.in_channels, device=layer.weight.device)
                self.inputs[layer] = pad(empty, (0, 0, beside, beside, above, 0))
                active = layer.weight[:, :, : above + 1].permute(0, 2, 3, 1)
                self.weights[layer] = active.flatten(1).t().contiguous()

    def put(self, row: int, column: int, value: Tensor) -> None:
        """Set a pixel `[batch, 1]` of the images."""
        first = next(iter(self.inputs))
        above, beside = (length // 2 for length in first.kernel_size)  # type: ignore[union-attr]
        self.inputs[first][:, row + above, column + beside] = value

    def scores(self, row: int, column: int) -> Tensor:
        """The scores `[batch, levels]` of a pixel, given all pixels before it."""
        return self._apply(self.network, None, row, column)

    def _apply(self, module: nn.Module, value: Tensor | None, row: int, column: int) -> Tensor:
        if isinstance(module, MaskedConv2d):
            height, width = module.kernel_size
            kept = self.inputs[module]
            if value is not None:
                kept[:, row + height // 2, column + width // 2] = value
            patch = kept[:, row : row + height // 2 + 1, column : column + width]
            sums = torch.addmm(module.bias, patch.flatten(1), self.weights[module])  # type: ignore[arg-type]
            return _activated(module, sums)
        if isinstance(module, ResidualBlock):
            assert value is not None
            inner = self._apply(module.steps, value, row, column)
            return value + self._apply(module.last, inner, row, column)
        if isinstance(module, nn.Sequential):
            for layer in module:
                if not isinstance(layer, nn.Dropout2d):  # which does nothing here, and takes no single pixel
                    value = self._apply(layer, value, row, column)
            assert value is not None
            return value
        return module(value)


def draw_with_cache(model: AutoregressiveImageModel, batch: int, size: int) -> Tensor:
    """Draw images `[batch, 1, size, size]` by a loop in Python, each layer keeping its input."""
    cache = Cache(model, batch, size)
    images = torch.zeros(batch, 1, size, size, dtype=torch.long, device=device_of(model))
    for row in range(size):
        for column in range(size):
            levels = torch.multinomial(cache.scores(row, column).softmax(1), 1)
            images[:, :, row, column] = levels
            cache.put(row, column, model.distribution.scale(levels))
    return images
