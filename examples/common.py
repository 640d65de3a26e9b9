"""What every example has and none is about: options, the loop with its progress bar, checkpoints, pictures.

An example is a module with

    make_parser() -> ArgumentParser      its options, on top of those of `base_parser`
    make_tasks(options) -> Tasks         the models to train, by name, each with its data and its loss
    main(arguments) -> Numbers           train them, print and draw what they learned, return the numbers

and everything else, `benchmarks/training.py` too, works on that.
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

# The bright scheme of Paul Tol: told apart by colour-blind readers too.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
STOPPED = 130  # the exit code of a program that Ctrl-C ended


class Task(ABC):
    """One model in training: the example says which batch a step has and what its loss is.

    A step depends on the weights, the seed and its own number alone (its dropout too), so a training that goes on from
    a checkpoint makes the same steps as one that never stopped, and the same steps with either choice of layers.

    Args:
        model: Is trained.
        examples: How many there are to train on; an epoch sees each of them once, `options.batch` at a time.
        options: Those of `base_parser`.
        clip: The largest norm of all gradients together.
        decay: Whether the learning rate falls to zero in a straight line over all epochs.
        make_optimizer: From parameters and learning rate.

    Attributes:
        model: As given.
        steps_per_epoch: Steps in an epoch; examples that do not fill a batch are left for another epoch.
        steps_done: Steps so far.
        losses: The loss of each of them.
        norms: The norm of all gradients of each of them, before clipping.
        scores: What `evaluate` returned after each epoch.
        unit: What `units_per_step` counts.
        units_per_step: How many of them a step trains on.
        seed: Of everything that is drawn.
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
        """How well the model does on what it was not trained on; called without gradients and in eval mode."""

    def batch_of(self, step: int) -> Tensor:
        """Which examples the batch of `step` holds, `[batch]`: of a new order each epoch, the same for every model."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(self._examples, generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        return order[place * self._batch : (place + 1) * self._batch]

    def step(self) -> float:
        """One batch forward and backward and one step of the optimizer; returns the loss."""
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
        """`evaluate` without gradients and in eval mode."""
        self.model.eval()
        numbers = self.evaluate()
        self.model.train()
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on from here."""
        done = {name: getattr(self, name) for name in ("steps_done", "losses", "norms", "scores")}
        return done | {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a model of the same sizes."""
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
        epochs: Default of `--epochs`.
        batch: Default of `--batch`.
        learning_rate: Default of `--learning-rate`.
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
    """Train all models, an epoch each in turn, and keep a checkpoint after every epoch.

    Ctrl-C ends after the step that is running, with a checkpoint from which `--resume` goes on as if nothing had
    happened; a second one ends at once.

    Args:
        tasks: By name; are trained until `options.epochs` are done.
        options: Those of `base_parser`.

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
    """A list that Ctrl-C puts something into, so that no step is left half done; a second Ctrl-C ends at once."""
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
    """Write a checkpoint; a crash meanwhile leaves the old one as it was."""
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
    """Such as `accuracy 0.987, loss 0.0412`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, in the style of all pictures here."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file, tell where, and leave out of it what would differ from run to run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    print(f"picture: {path}")
