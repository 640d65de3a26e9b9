"""The four shapes of sequence work, one small model each: which outputs are used, and what a batch looks like.

    python -m examples.sequence_shapes

    one to many    spell     a picture of a digit -> its name, letter by letter; the picture is the first state
    many to one    read      the eight rows of a picture -> the digit; only the last output is used
    many to many   sort      four pictures -> their digits from small to large; the last state starts a second layer
    synchronised   compare   ten pictures -> at each, whether the digit is larger than the last; every output is used

The pictures are the digits of scikit-learn; the last 300, by other writers, are held out. All tensors are time first,
`[time, batch, ...]`. `sort` and `spell` get the right answers so far as input in training (teacher forcing), and their
own answers in evaluation.
"""

from __future__ import annotations

import argparse
from abc import abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.common import COLOURS, Numbers, Task, base_parser, make_figure, save_figure, train
from examples.eye import Eye, draw_pictures
from examples.layers import CHOICES, Layers

HELD_OUT_BATCH = 500
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = ".efghinorstuvwxz"  # a point marks the beginning and the end of a name
State = tuple[Tensor, Tensor]


class Shape(nn.Module):
    """A model for one shape of sequence work, such as many to one."""

    title: str  # the usual name of the shape
    pictures: int  # the number of pictures in one example

    @abstractmethod
    def targets(self, digits: Tensor) -> Tensor:
        """The right answers `[steps, batch]` for pictures of `digits` `[pictures, batch]`."""

    @abstractmethod
    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """Scores `[steps, batch, answers]` from `[pictures, batch, 8, 8]`; a `Writer` also reads `targets`."""

    def answer(self, pictures: Tensor) -> Tensor:
        """The likeliest answers `[steps, batch]`."""
        return self(pictures).argmax(2)

    def text(self, answers: Tensor) -> str:
        """Answers `[steps]` as text."""
        return " ".join(map(str, answers.tolist()))


class Read(Shape):
    """Many to one: the rows of a picture are the steps, and the last output depends on all of them."""

    title, pictures = "many to one", 1

    def __init__(self, layers: Layers, hidden_size: int) -> None:
        super().__init__()
        self.recurrent = layers.gru(8, hidden_size)
        self.scores = nn.Linear(hidden_size, 10)

    def targets(self, digits: Tensor) -> Tensor:
        """The digit."""
        return digits

    def forward(self, pictures: Tensor, targets: Tensor | None = None) -> Tensor:
        """Scores `[1, batch, 10]` from the last output."""
        output, _ = self.recurrent(pictures[0].transpose(0, 1))  # rows first: [8, batch, 8]
        return self.scores(output[-1:])


class Compare(Shape):
    """Synchronised many to many: an answer at each step, so every output is used."""

    title, pictures = "synchronised", 10

    def __init__(self, layers: Layers, hidden_size: int) -> None:
        super().__init__()
        self.eye = Eye(hidden_size)
        self.recurrent = layers.lstm(hidden_size, hidden_size)
        self.scores = nn.Linear(hidden_size, 2)

    def targets(self, digits: Tensor) -> Tensor:
        """1 where the digit is larger than the one before it, else 0, `[pictures, batch]`; 0 for the first."""
        return torch.cat([torch.zeros_like(digits[:1]), (digits[1:] > digits[:-1]).long()])

    def forward(self, pictures: Tensor, targets: Tensor | None = None) -> Tensor:
        """Scores `[pictures, batch, 2]` from every output."""
        output, _ = self.recurrent(self.eye(pictures))
        return self.scores(output)

    def text(self, answers: Tensor) -> str:
        """An arrow for each larger digit."""
        return "".join("↑" if larger else "·" for larger in answers)


class Writer(Shape):
    """A layer that writes `steps` answers; the input of a step is the previous answer, first answer 0."""

    def __init__(self, layers: Layers, hidden_size: int, answers: int, steps: int) -> None:
        super().__init__()
        self.eye = Eye(hidden_size)
        self.embedding = nn.Embedding(answers, 32)
        self.decoder = layers.lstm(32, hidden_size)
        self.scores = nn.Linear(hidden_size, answers)
        self.steps = steps

    @abstractmethod
    def first_state(self, pictures: Tensor) -> State:
        """The initial state of the decoder, which must contain all information from the pictures."""

    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """Scores `[steps, batch, answers]` of all steps in one call, since the right answers before each are known."""
        given = torch.cat([torch.zeros_like(targets[:1]), targets[:-1]])
        output, _ = self.decoder(self.embedding(given), self.first_state(pictures))
        return self.scores(output)

    def answer(self, pictures: Tensor) -> Tensor:
        """The likeliest answers, step by step, each from the answer before it."""
        state, written = self.first_state(pictures), [torch.zeros(1, pictures.shape[1], dtype=torch.long)]
        for _ in range(self.steps):
            output, state = self.decoder(self.embedding(written[-1]), state)
            written.append(self.scores(output).argmax(2))
        return torch.cat(written[1:])


class Spell(Writer):
    """One to many: one picture makes the first state, and every output is a letter."""

    title, pictures = "one to many", 1

    def __init__(self, layers: Layers, hidden_size: int) -> None:
        super().__init__(layers, hidden_size, len(LETTERS), steps=6)
        self.names = torch.tensor([[LETTERS.index(letter) for letter in name.ljust(6, ".")] for name in NAMES])

    def first_state(self, pictures: Tensor) -> State:
        """The features of the picture as both h and c."""
        seen = self.eye(pictures)
        return seen, seen

    def targets(self, digits: Tensor) -> Tensor:
        """The name, filled up with points."""
        return self.names[digits[0]].t()

    def text(self, answers: Tensor) -> str:
        """The name up to its point."""
        return "".join(LETTERS[letter] for letter in answers).split(".")[0]


class Sort(Writer):
    """Many to many: one layer reads all pictures before the other writes the first digit."""

    title, pictures = "many to many", 4

    def __init__(self, layers: Layers, hidden_size: int) -> None:
        super().__init__(layers, hidden_size, 11, steps=4)
        self.encoder = layers.lstm(hidden_size, hidden_size)

    def first_state(self, pictures: Tensor) -> State:
        """The last state of the encoder."""
        return self.encoder(self.eye(pictures))[1]

    def targets(self, digits: Tensor) -> Tensor:
        """The digits from small to large, each plus one, since answer 0 marks the beginning."""
        return digits.sort(dim=0).values + 1

    def text(self, answers: Tensor) -> str:
        """The digits."""
        return super().text(answers - 1)


SHAPES: dict[str, type[Shape]] = {"spell": Spell, "read": Read, "sort": Sort, "compare": Compare}


class ShapeTask(Task):
    """The training of one of `SHAPES`; each step draws new random pictures."""

    unit = "sequences"

    def __init__(self, options: argparse.Namespace, shape: str) -> None:
        torch.manual_seed(options.seed)
        self.shape = SHAPES[shape](CHOICES[options.layer], options.hidden)
        super().__init__(self.shape, options.sequences, options, clip=1.0, decay=True)
        pictures, digits = draw_pictures(self.shape.pictures, HELD_OUT_BATCH, held_out=True, seed=10**9)
        self.held_out = pictures, self.shape.targets(digits)

    def loss(self, step: int) -> Tensor:
        """The mean cross entropy of an answer, in nats."""
        seed = 10**6 * self.seed + step
        pictures, digits = draw_pictures(self.shape.pictures, self.units_per_step, held_out=False, seed=seed)
        targets = self.shape.targets(digits)
        return cross_entropy(self.shape(pictures, targets).flatten(0, 1), targets.flatten())

    def evaluate(self) -> Numbers:
        """The accuracy: the fraction of held-out sequences of which every answer is right."""
        pictures, targets = self.held_out
        return {"accuracy": (self.shape.answer(pictures) == targets).all(0).float().mean().item()}


@torch.no_grad()
def draw_picture(tasks: dict[str, ShapeTask], path: Path) -> None:
    """Draw for each shape an example with its answer, and the accuracy by epoch below."""
    figure = make_figure(3 * len(tasks), 4)
    upper, lower = figure.subplots(2, len(tasks), squeeze=False, height_ratios=(1, 2))
    for top, axis, (name, task), colour in zip(upper, lower, tasks.items(), COLOURS, strict=False):
        pictures = task.held_out[0][:, :1]
        strip = nn.functional.pad(pictures[:, 0], (1, 1)).transpose(0, 1).flatten(1)
        top.imshow(strip.numpy(), cmap="gray_r")
        top.set(xticks=[], yticks=[], title=f"{task.shape.title}: {name}")
        top.set_xlabel("→ " + task.shape.text(task.shape.answer(pictures)[:, 0]), fontsize=12)
        accuracy = [numbers["accuracy"] for numbers in task.scores]
        axis.plot(range(1, 1 + len(accuracy)), accuracy, "o-", markersize=3, color=colour)
        axis.set(xlabel="epoch", ylim=(-0.02, 1.02))
    lower[0].set_ylabel("held-out sequences all right")
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("sequence_shapes", __doc__, epochs=16, batch=64, learning_rate=3e-3)
    add = parser.add_argument_group("data and models").add_argument
    add("--shapes", nargs="+", choices=tuple(SHAPES), default=tuple(SHAPES), help="the shapes (%(default)s)")
    add("--sequences", type=int, default=6400, help="sequences in an epoch (%(default)s)")
    add("--hidden", type=int, default=96, help="size of the states (%(default)s)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, ShapeTask]:
    """One model for each shape."""
    return {shape: ShapeTask(options, shape) for shape in options.shapes}


def main(arguments: list[str] | None = None) -> Numbers:
    """Train, and draw."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    draw_picture(tasks, options.picture)
    return {f"accuracy of {shape}": task.scores[-1]["accuracy"] for shape, task in tasks.items()}


if __name__ == "__main__":
    main()
