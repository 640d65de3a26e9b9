"""The common parts of all examples: options, the training loop with its progress bar, checkpoints, pictures.

An example is a module with these functions, on which `benchmarks/training.py` relies, too:

    make_parser() -> ArgumentParser      its options, in addition to those of `base_parser`
    make_tasks(options) -> Tasks         the models to train, by name, each with its data and its loss
    main(arguments) -> Numbers           trains them, prints and draws what they have learned, and returns the scores
"""

from __future__ import annotations

import argparse
import math
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from examples.layers import CHOICES

Numbers = dict[str, float]

# Paul Tol's bright colour scheme, which colour-blind readers can distinguish.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
STOPPED = 130  # the exit code of a program that Ctrl-C ended


class Task(ABC):
    """The training of one model; an example defines the batch and the loss of each step.

    A step, including its dropout, depends only on the weights, the seed and the number of the step. So a training that
    is resumed from a checkpoint makes the same steps as one that was never stopped, with either choice of layers.

    Args:
        model: The model to train.
        examples: The number of training examples; an epoch uses each of them once, `options.batch` in a step.
        options: The options of `base_parser`.
        clip: The largest norm of all gradients together.
        decay: Whether the learning rate decreases linearly to zero over all epochs.
        make_optimizer: A function of parameters and learning rate that returns an optimizer.

    Attributes:
        model: The model.
        steps_per_epoch: The number of steps in an epoch; examples that do not fill a batch are left out of it.
        steps_done: The number of steps so far.
        losses: The loss of each step.
        norms: The norm of all gradients of each step, before clipping.
        scores: The result of `evaluate` after each epoch.
        unit: The unit of `units_per_step`.
        units_per_step: The number of units that a step trains on.
        seed: The seed of all random numbers.
    """

    unit = "examples"

    def __init__(
        self,
        model: nn.Module,
        examples: int,
        options: argparse.Namespace,
        clip: float = math.inf,
        decay: bool = False,
        make_optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        if examples < options.batch:
            raise ValueError(f"--batch must not exceed the {examples} examples there are to train on")
        self.model = model
        self.steps_per_epoch = examples // options.batch
        self.steps_done = 0
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.scores: list[Numbers] = []
        self.units_per_step: int = options.batch
        self.total_steps: int = options.epochs * self.steps_per_epoch
        self._examples = examples
        self._batch: int = options.batch
        self.seed: int = options.seed
        self._rate: float = options.learning_rate
        self._optimizer = make_optimizer(model.parameters(), self._rate)
        self._clip = clip
        self._decay = decay

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """The mean loss of the batch of step number `step`."""

    @abstractmethod
    def evaluate(self) -> Numbers:
        """The scores of the model on held-out data; called without gradients and in eval mode."""

    def batch_of(self, step: int) -> Tensor:
        """The indices of the examples of a step, `[batch]`, in a new order in each epoch, the same for every model."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = torch.randperm(self._examples, generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        return order[index * self._batch : (index + 1) * self._batch]

    def step(self) -> float:
        """Make one step: a batch forward and backward, and the optimizer's update. Returns the loss."""
        torch.manual_seed(self.seed + self.steps_done)  # dropout's masks
        if self._decay:
            self._optimizer.param_groups[0]["lr"] = self._rate * (1 - self.steps_done / self.total_steps)
        self._optimizer.zero_grad()
        loss = self.loss(self.steps_done)
        loss.backward()
        self.norms.append(nn.utils.clip_grad_norm_(self.model.parameters(), self._clip).item())
        self._optimizer.step()
        self.steps_done += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    @torch.no_grad()
    def score(self) -> Numbers:
        """Call `evaluate` without gradients and in eval mode."""
        self.model.eval()
        numbers = self.evaluate()
        self.model.train()
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """The state from which the training can be resumed."""
        done = {name: getattr(self, name) for name in ("steps_done", "losses", "norms", "scores")}
        return done | {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict` of a model of the same sizes."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for name in ("steps_done", "losses", "norms", "scores"):
            setattr(self, name, state[name])


Tasks = Mapping[str, Task]


def base_parser(
    name: str, description: str, *, epochs: int, batch: int, learning_rate: float
) -> argparse.ArgumentParser:
    """The options that every example has.

    Args:
        name: The module's name in `examples`.
        description: The module's docstring.
        epochs: The default of `--epochs`.
        batch: The default of `--batch`.
        learning_rate: The default of `--learning-rate`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("training").add_argument
    add(
        "--layer", choices=tuple(CHOICES), default="fused", help="whose layers: fused_rnn's or torch.nn's (%(default)s)"
    )
    add("--epochs", type=int, default=epochs, help="passes over the training data (%(default)s)")
    add("--batch", type=int, default=batch, help="examples a step (%(default)s)")
    add("--learning-rate", type=float, default=learning_rate, help="of Adam (%(default)s)")
    add("--seed", type=int, default=0, help="of the weights, the order of the data and all that is drawn (%(default)s)")
    add("--checkpoint", type=Path, default=Path(f"runs/{name}.pt"), help="where the training is kept (%(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint")
    add("--picture", type=Path, default=Path(f"runs/{name}.png"), help="the picture to draw (%(default)s)")
    return parser


def train(tasks: Tasks, options: argparse.Namespace) -> None:
    """Train all models, an epoch each in turn, and save a checkpoint after every epoch.

    Ctrl-C ends the training after the current step and saves a checkpoint, from which `--resume` continues as if there
    had been no interruption; a second Ctrl-C ends it at once.

    Args:
        tasks: The trainings by name, which are continued until `options.epochs` are done.
        options: The options of `base_parser`.

    Raises:
        SystemExit: Ctrl-C was pressed.
        FileNotFoundError: There is no checkpoint to resume from.
    """
    if options.resume:
        _load(tasks, options.checkpoint)
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with _asked_to_stop() as asked, Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        bars = {
            name: progress.add_task(name, total=task.total_steps, completed=task.steps_done, start=False, note="")
            for name, task in tasks.items()
        }
        for epoch in range(options.epochs):
            for name, task in tasks.items():
                progress.start_task(bars[name])
                while len(task.scores) <= epoch:
                    if task.steps_done < (epoch + 1) * task.steps_per_epoch:
                        progress.update(bars[name], completed=task.steps_done + 1, note=f"loss {task.step():.4f}")
                    if task.steps_done == (epoch + 1) * task.steps_per_epoch:
                        task.scores.append(task.score())
                        progress.update(bars[name], note=format_numbers(task.scores[-1]))
                    if asked:
                        _stop(tasks, options, console)
            _save(tasks, options.checkpoint)


def _stop(tasks: Tasks, options: argparse.Namespace, console: Console) -> None:
    _save(tasks, options.checkpoint)
    done, total = (sum(getattr(task, name) for task in tasks.values()) for name in ("steps_done", "total_steps"))
    console.print(f"stopped after {done} of {total} steps; the same command with --resume goes on")
    raise SystemExit(STOPPED)


@contextmanager
def _asked_to_stop() -> Iterator[list[bool]]:
    """A list that Ctrl-C makes non-empty, so that the current step can be completed; a second Ctrl-C ends at once."""
    asked: list[bool] = []

    def ask(*_: Any) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)


def _save(tasks: Tasks, path: Path) -> None:
    """Write a checkpoint such that a crash while writing leaves the old one intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save({name: task.state_dict() for name, task in tasks.items()}, unfinished)
    os.replace(unfinished, path)


def _load(tasks: Tasks, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"--resume: there is no checkpoint {path}; leave it out to begin anew")
    content = torch.load(path, weights_only=True)
    for name, task in tasks.items():
        task.load_state_dict(content[name])


def format_numbers(numbers: Numbers) -> str:
    """Format scores, such as `accuracy 0.987, loss 0.0412`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches, in the style of all pictures here."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file without metadata that would differ between versions, and print its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    print(f"picture: {path}")
