"""The training of every model of the examples, with our layers and with torch.nn's by turns.

Both models have the same seed, and so the same weights, batches and dropout. Their losses have to agree over the first
steps before anything is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import mean
from time import perf_counter

from torch import nn

from benchmarks.problem import CheckError
from benchmarks.results import OURS, THEIRS, TrainingResult
from benchmarks.timing import Measurement
from examples.common import Task, Tasks

# The two round differently, and training amplifies the difference from step to step, because Adam divides by the size
# of the gradient, however small: to at most 4e-6 over the first ten steps, to 1e-4 and more over twenty.
COMPARED_STEPS = 10
LOSS_TOLERANCE = 2e-5
LAST_STEPS = 50


@dataclass(frozen=True)
class Pair:
    """One model of an example, with either choice of layers.

    Attributes:
        example: The module in `examples`.
        name: The example's name of the model.
        tasks: The same training twice, by layers.
    """

    example: str
    name: str
    tasks: dict[str, Task]


def make_pairs(example: str, arguments: Sequence[str] = ()) -> list[Pair]:
    """The models of an example in which the choice of layers makes a difference.

    Args:
        example: A module in `examples`.
        arguments: Its command line, beside the choice of layers.

    Returns:
        One pair for each model that has a layer to choose.
    """
    module = import_module(f"examples.{example}")
    parser = module.make_parser()
    tasks: dict[str, Tasks] = {
        layers: module.make_tasks(parser.parse_args([*arguments, "--layer", layers])) for layers in (OURS, THEIRS)
    }
    pairs = [Pair(example, name, {layers: tasks[layers][name] for layers in tasks}) for name in tasks[OURS]]
    return [pair for pair in pairs if len({_classes(task.model) for task in pair.tasks.values()}) > 1]


def train_pair(
    pair: Pair, seconds: float, show_progress: Callable[[float], None] = lambda done: None
) -> TrainingResult:
    """Train both models on the same batches, one step each by turns.

    Args:
        pair: The models, which are changed.
        seconds: How long both train together; the steps whose losses are compared are made in any case.
        show_progress: Is called with the part of that which is over, from 0 to 1.

    Returns:
        Times, losses and scores.

    Raises:
        CheckError: The losses of the first steps differ.
    """
    times: dict[str, list[float]] = {layers: [] for layers in pair.tasks}
    order = list(pair.tasks)
    difference, begin = 0.0, perf_counter()
    while len(times[OURS]) < COMPARED_STEPS or perf_counter() - begin < seconds:
        for layers in order:
            start = perf_counter()
            pair.tasks[layers].step()
            times[layers].append(perf_counter() - start)
        order.reverse()
        steps = len(times[OURS])
        if steps == COMPARED_STEPS:
            difference = _compare_losses(pair)
        show_progress(min(1.0, (perf_counter() - begin) / seconds) if seconds else steps / COMPARED_STEPS)
    ours = pair.tasks[OURS]
    return TrainingResult(
        example=pair.example,
        name=pair.name,
        unit=ours.unit,
        units_per_step=ours.units_per_step,
        steps_per_epoch=ours.steps_per_epoch,
        steps=steps,
        compared_steps=COMPARED_STEPS,
        tolerance=LOSS_TOLERANCE,
        difference=difference,
        step_times={layers: Measurement.of(samples) for layers, samples in times.items()},
        losses={layers: mean(task.losses[-LAST_STEPS:]) for layers, task in pair.tasks.items()},
        scores={layers: task.score() for layers, task in pair.tasks.items()},
    )


def _classes(model: nn.Module) -> tuple[type, ...]:
    return tuple(type(module) for module in model.modules())


def _compare_losses(pair: Pair) -> float:
    """The largest relative difference of the losses so far, which must be small."""
    losses = zip(pair.tasks[OURS].losses, pair.tasks[THEIRS].losses, strict=True)
    difference = max(abs(ours - theirs) / theirs for ours, theirs in losses)
    if not difference <= LOSS_TOLERANCE:
        raise CheckError(
            f"{pair.example}, {pair.name}: the losses with the layers of fused_rnn and of torch.nn differ by "
            f"{difference:.2e} within {COMPARED_STEPS} steps, allowed are {LOSS_TOLERANCE:.0e}"
        )
    return difference
