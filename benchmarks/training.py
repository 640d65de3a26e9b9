"""Trains every model of the examples with our layers and with torch.nn's, in alternating steps.

Both models have the same seed, and so the same weights, batches and dropout. Their losses must agree over the first
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

# The two choices of layers round differently, and training amplifies the difference from step to step, because Adam
# divides by the size of the gradient, however small: the losses differ by at most 4e-6 over the first ten steps, but by
# 1e-4 and more over twenty.
COMPARED_STEPS = 10
LOSS_TOLERANCE = 2e-5
LAST_STEPS = 50


@dataclass(frozen=True)
class Pair:
    """One model of an example, with either choice of layers.

    Attributes:
        example: The name of the module in `examples`.
        name: The example's name of the model.
        tasks: The training with each choice of layers.
    """

    example: str
    name: str
    tasks: dict[str, Task]


def make_pairs(example: str, arguments: Sequence[str] = ()) -> list[Pair]:
    """The models of an example that differ by the choice of layers.

    Args:
        example: The name of a module in `examples`.
        arguments: Its command line, without the choice of layers.

    Returns:
        A pair for each model whose layers can be chosen.
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
    """Train both models on the same batches, in alternating steps.

    Args:
        pair: The models, which are changed.
        seconds: How long to train, both together; the steps whose losses are compared are made in any case.
        show_progress: A function that is called with the progress, from 0 to 1.

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
    """Return the largest relative difference of the losses so far, or raise an error if it is too large."""
    losses = zip(pair.tasks[OURS].losses, pair.tasks[THEIRS].losses, strict=True)
    difference = max(abs(ours - theirs) / theirs for ours, theirs in losses)
    if not difference <= LOSS_TOLERANCE:
        raise CheckError(
            f"{pair.example}, {pair.name}: the losses with the layers of fused_rnn and of torch.nn differ by "
            f"{difference:.2e} within {COMPARED_STEPS} steps, allowed are {LOSS_TOLERANCE:.0e}"
        )
    return difference
