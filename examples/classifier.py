"""Classify ragged sequences: what kind of character a Unicode name belongs to, read forward only or in both directions.

    python -m examples.classifier
    python -m examples.classifier --show "LATIN SMALL LETTER E WITH ACUTE" "DEVANAGARI DIGIT FIVE"

The names of Unicode's characters and their kinds (letter, mark, number, punctuation, symbol) come with Python. A name
has 3 to 80 letters, so a batch is ragged: the layer takes `lengths`, and its last state is each name's own last one,
forward at the name's end, backward at its beginning. Nothing is sorted, nothing packed, and no padding is computed.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from examples.common import COLOURS, Numbers, Task, base_parser, format_numbers, make_figure, save_figure, train
from examples.layers import CHOICES, Layers

DIRECTIONS = ("forward only", "both directions")
KINDS = {
    "Lu": "upper case", "Ll": "lower case", "Lo": "other letter", "Lm": "modifier letter", "M": "mark",
    "N": "number", "P": "punctuation", "S": "symbol",
}  # fmt: skip
LABELS = tuple(KINDS.values())
HELD_OUT = 2000
# Names that a program made up: a numbered list, or the sound of each of 11172 syllables.
NUMBERED = re.compile(r"-[0-9A-F]+$|HANGUL SYLLABLE|NUSHU CHARACTER")
ALPHABET = " -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def load_names() -> tuple[list[str], Tensor]:
    """The names of all characters that have one of their own, and the place of their kind among `LABELS`, `[names]`.

    Example:
        >>> names, labels = load_names()
        >>> names[33], LABELS[labels[33]]
        ('LATIN CAPITAL LETTER A', 'upper case')
    """
    names, labels = [], []
    for code in range(sys.maxunicode):
        name, category = unicodedata.name(chr(code), ""), unicodedata.category(chr(code))
        kind = KINDS.get(category, KINDS.get(category[0]))
        if name and kind is not None and not NUMBERED.search(name):
            names.append(name)
            labels.append(LABELS.index(kind))
    return names, torch.tensor(labels)


def encode(names: list[str]) -> tuple[Tensor, Tensor]:
    """Codes of all letters `[batch, time]`, 0 past a name's end, and the length of each name, `[batch]`.

    Example:
        >>> encode(["A", "B A"])
        (tensor([[13,  0,  0],
                [14,  1, 13]]), tensor([1, 3]))
    """
    codes = [torch.tensor([1 + ALPHABET.index(letter) for letter in name]) for name in names]
    return pad_sequence(codes, batch_first=True), torch.tensor([len(name) for name in names])


class Classifier(nn.Module):
    """Scores of all kinds, from the last state of each direction.

    Args:
        layers: Whose GRU.
        bidirectional: Whether a second direction reads the name from its end.
        hidden_size: Size of the state of both directions together.
        embedding_size: Size of a letter's vector.
    """

    def __init__(self, layers: Layers, bidirectional: bool, hidden_size: int, embedding_size: int = 32) -> None:
        super().__init__()
        each = hidden_size // 2 if bidirectional else hidden_size
        self.embedding = nn.Embedding(1 + len(ALPHABET), embedding_size, padding_idx=0)
        self.recurrent = layers.gru(embedding_size, each, batch_first=True, bidirectional=bidirectional)
        self.scores = nn.Linear(hidden_size, len(LABELS))

    def forward(self, letters: Tensor, lengths: Tensor) -> Tensor:
        """Scores `[batch, kinds]`.

        Args:
            letters: `[batch, time]`, whatever past the end.
            lengths: Letters of each name, `[batch]`.
        """
        _, last = self.recurrent(self.embedding(letters), lengths=lengths)  # [directions, batch, each]
        return self.scores(last.transpose(0, 1).flatten(1))


class NamesTask(Task):
    """A classifier and the names.

    Args:
        options: The command line's.
        bidirectional: Whether the name is read in both directions.
    """

    unit = "names"

    def __init__(self, options: argparse.Namespace, bidirectional: bool) -> None:
        names, labels = load_names()
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(options.seed))
        order = order[: HELD_OUT + options.names if options.names else None]
        self.letters, self.lengths = encode([names[place] for place in order])
        self.labels = labels[order]
        torch.manual_seed(options.seed)
        self.network = Classifier(CHOICES[options.layer], bidirectional, options.hidden)
        super().__init__(self.network, len(order) - HELD_OUT, options, clip=1.0, decay=True)

    def loss(self, step: int) -> Tensor:
        """Nats a name."""
        rows = HELD_OUT + self.batch_of(step)
        lengths = self.lengths[rows]
        return cross_entropy(self.network(self.letters[rows, : lengths.max()], lengths), self.labels[rows])

    def answers(self) -> Tensor:
        """The likeliest kind of each name held out."""
        return self.network(self.letters[:HELD_OUT], self.lengths[:HELD_OUT]).argmax(1)

    def evaluate(self) -> Numbers:
        """The part of the held-out names whose kind is found."""
        return {"accuracy": (self.answers() == self.labels[:HELD_OUT]).float().mean().item()}


@torch.no_grad()
def draw_picture(tasks: dict[str, NamesTask], path: Path) -> None:
    """Accuracy by epoch, and the part of each kind that is found."""
    figure = make_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for number, ((name, task), colour) in enumerate(zip(tasks.items(), COLOURS, strict=False)):
        accuracy = [numbers["accuracy"] for numbers in task.scores]
        left.plot(range(1, 1 + len(accuracy)), accuracy, "o-", markersize=3, color=colour, label=name)
        labels, found = task.labels[:HELD_OUT], task.answers() == task.labels[:HELD_OUT]
        recall = [found[labels == label].float().mean().item() for label in range(len(LABELS))]
        places = [label + 0.4 * number - 0.2 for label in range(len(LABELS))]
        right.barh(places, recall, 0.4, color=colour, label=name)
    counts = torch.bincount(labels, minlength=len(LABELS)).tolist()
    right.set_yticks(range(len(LABELS)), [f"{label} ({count})" for label, count in zip(LABELS, counts, strict=True)])
    right.invert_yaxis()
    right.set(title="by kind (names held out)", xlabel="part that is found")
    left.set(title="held-out names", xlabel="epoch", ylabel="accuracy")
    left.legend()
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("classifier", __doc__, epochs=5, batch=64, learning_rate=3e-3)
    add = parser.add_argument_group("data and model").add_argument
    add("--names", type=int, help="how many names to train on (all)")
    add("--hidden", type=int, default=96, help="size of the state, of both directions together (%(default)s)")
    add("--show", nargs="+", default=["GREEK SMALL LETTER PI", "ARABIC QUESTION MARK"], help="names to classify")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, NamesTask]:
    """One model that reads forward only, one that reads in both directions."""
    return {name: NamesTask(options, name == DIRECTIONS[1]) for name in DIRECTIONS}


def main(arguments: list[str] | None = None) -> Numbers:
    """Train, compare with always saying the commonest kind, classify the names to show, and draw."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    labels = tasks[DIRECTIONS[0]].labels
    numbers = {f"accuracy {name}": task.scores[-1]["accuracy"] for name, task in tasks.items()}
    numbers["always the commonest kind"] = (labels[:HELD_OUT] == labels.mode().values).float().mean().item()
    print(format_numbers(numbers))
    for name, task in tasks.items():
        best = task.network(*encode([text.upper() for text in options.show])).argmax(1)
        print(
            f"{name}:", ", ".join(f"{text} is {LABELS[label]}" for text, label in zip(options.show, best, strict=True))
        )
    draw_picture(tasks, options.picture)
    return numbers


if __name__ == "__main__":
    main()
