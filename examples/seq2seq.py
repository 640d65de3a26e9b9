"""Sequence to sequence: dates as people write them, turned into ISO form, character by character, in four ways.

    python -m examples.seq2seq
    python -m examples.seq2seq --kinds plain attention --hidden 64 --date "the 4th of July 2026"

An encoder reads the date, and a decoder, which starts from the encoder's last state, writes ten characters (Sutskever
et al., "Sequence to Sequence Learning with Neural Networks", 2014). This is `plain`; `reversed` reads the date from its
end; a `peeky` decoder gets the encoder's last state at every step (Cho et al., 2014); with `attention` it gets a mean
of the encoder's outputs weighted by their relevance (Luong et al., 2015). Dates differ in length, so a batch is ragged
and the encoder takes `lengths`.
"""

from __future__ import annotations

import argparse
import random
from datetime import date, timedelta
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from examples.common import COLOURS, Numbers, Task, base_parser, make_figure, save_figure, train
from examples.layers import CHOICES, Layers

KINDS = ("plain", "reversed", "peeky", "attention")
FIRST_DAY, DAYS = date(1970, 1, 1), 36525  # so that two digits name one year
HELD_OUT = 1000
ISO_LENGTH = 10
INPUT_CHARACTERS = " ',./0123456789abcdefghijklmnopqrstuvwxyz"
OUTPUT_CHARACTERS = "-0123456789>"
BEGIN = OUTPUT_CHARACTERS.index(">")


def write_date(day: date, draw: random.Random) -> str:
    """A day in one of the ways that people write it.

    Example:
        >>> draw = random.Random(0)
        >>> [write_date(date(2026, 11, 3), draw) for _ in range(3)]
        ['11/3/2026', '11/03/26', '3 november 2026']
    """
    number = day.day
    nth = f"{number}{'th' if 10 < number < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
    forms = (
        f"{number} %b %Y", f"{number} %B %Y", f"{nth} of %B %Y", f"the {nth} of %B, %Y", f"%A, {number} %B %Y",
        f"%B {number}, %Y", f"%b {nth}, %Y", f"%A, %B {nth} %Y", f"%a {number} %b '%y", f"%b {number}, '%y",
        f"{number}.{day.month}.%Y", "%d.%m.%y", f"{day.month}/{number}/%Y", "%m/%d/%y", "%Y/%m/%d", "%Y, %B %d",
    )  # fmt: skip
    return day.strftime(draw.choice(forms)).lower()


def encode(text: str, characters: str) -> Tensor:
    """The index of each character in `characters`, from 1, since 0 is padding; other characters raise an error."""
    return torch.tensor([1 + characters.index(character) for character in text])


class Seq2seq(nn.Module):
    """Encoder and decoder.

    Args:
        layers: The choice of layers, from which it takes the LSTM.
        kind: One of `KINDS`.
        hidden_size: The size of the states.
        embedding_size: The size of a character's vector.
    """

    def __init__(self, layers: Layers, kind: str, hidden_size: int, embedding_size: int = 32) -> None:
        super().__init__()
        self.kind = kind
        seen = hidden_size if kind == "peeky" else 0
        self.read = nn.Embedding(1 + len(INPUT_CHARACTERS), embedding_size)
        self.encoder = layers.lstm(embedding_size, hidden_size, batch_first=True)
        self.written = nn.Embedding(len(OUTPUT_CHARACTERS), embedding_size)
        self.decoder = layers.lstm(embedding_size + seen, hidden_size, batch_first=True)
        both = 2 * hidden_size if kind in ("peeky", "attention") else hidden_size
        self.scores = nn.Linear(both, len(OUTPUT_CHARACTERS))

    def encode(self, dates: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The encoder's outputs `[batch, time, hidden]`, zero after a date's end, and its states at the end.

        Args:
            dates: Characters `[batch, time]`, padded with 0.
            lengths: The number of characters of each date, `[batch]`.
        """
        return self.encoder(self.read(dates), lengths=lengths)

    def decode(
        self, given: Tensor, state: tuple[Tensor, Tensor], memory: Tensor, real: Tensor, last: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Score the next characters.

        Args:
            given: The characters written since `state`, `[batch, steps]`.
            state: The decoder's state before them.
            memory: The encoder's outputs `[batch, time, hidden]`.
            real: Whether each of them belongs to a date, not to padding, `[batch, time]`.
            last: The encoder's last h, `[batch, hidden]`.

        Returns:
            Scores of the next characters `[batch, steps, characters]`, the new state, and the attention weights of each
            step `[batch, steps, time]`; without attention these are empty, `[batch, steps, 0]`.
        """
        input, weights = self.written(given), torch.zeros(*given.shape, 0)
        peek = last[:, None].expand(-1, given.shape[1], -1)
        if self.kind == "peeky":
            input = torch.cat([input, peek], dim=2)
        output, state = self.decoder(input, state)
        if self.kind == "peeky":
            output = torch.cat([output, peek], dim=2)
        if self.kind == "attention":
            likeness = (output @ memory.transpose(1, 2)).masked_fill(~real[:, None], -torch.inf)
            weights = torch.softmax(likeness, dim=2)
            output = torch.cat([output, weights @ memory], dim=2)
        return self.scores(output), state, weights

    def forward(self, dates: Tensor, lengths: Tensor, given: Tensor) -> Tensor:
        """Scores of all characters, each from the right ones before it, `given` (teacher forcing)."""
        memory, state = self.encode(dates, lengths)
        return self.decode(given, state, memory, dates > 0, state[0][0])[0]

    @torch.no_grad()
    def translate(self, dates: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest character at each step, `[batch, 10]`, and the attention weights, `[batch, 10, time]`."""
        memory, state = self.encode(dates, lengths)
        last, written, looked = state[0][0], [torch.full((len(dates), 1), BEGIN)], []
        for _ in range(ISO_LENGTH):
            scores, state, weights = self.decode(written[-1], state, memory, dates > 0, last)
            written.append(scores.argmax(2))
            looked.append(weights)
        return torch.cat(written[1:], dim=1), torch.cat(looked, dim=1)


class DatesTask(Task):
    """The training of one kind of model; held-out days do not occur in training in any form.

    Args:
        options: The options of the command line.
        kind: One of `KINDS`.
    """

    unit = "dates"

    def __init__(self, options: argparse.Namespace, kind: str) -> None:
        torch.manual_seed(options.seed)
        draw = random.Random(options.seed)
        days = [FIRST_DAY + timedelta(number) for number in draw.sample(range(DAYS), options.dates + HELD_OUT)]
        self.kind = kind
        self.dates, self.lengths = self.prepare([write_date(day, draw) for day in days])
        self.targets = torch.stack([encode(day.isoformat(), OUTPUT_CHARACTERS) - 1 for day in days])
        self.network = Seq2seq(CHOICES[options.layer], kind, options.hidden)
        super().__init__(self.network, options.dates, options, clip=1.0, decay=True)

    def prepare(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Characters `[batch, time]`, padded with 0, and the length of each text."""
        codes = [encode(text[::-1] if self.kind == "reversed" else text, INPUT_CHARACTERS) for text in texts]
        return pad_sequence(codes, batch_first=True), torch.tensor([len(code) for code in codes])

    def loss(self, step: int) -> Tensor:
        """The mean cross entropy of a character, in nats."""
        rows = HELD_OUT + self.batch_of(step)
        targets = self.targets[rows]
        given = torch.cat([torch.full((len(rows), 1), BEGIN), targets[:, :-1]], dim=1)
        lengths = self.lengths[rows]
        scores = self.network(self.dates[rows, : lengths.max()], lengths, given)
        return cross_entropy(scores.flatten(0, 1), targets.flatten())

    def evaluate(self) -> Numbers:
        """The accuracy: the fraction of held-out dates of which all ten characters are right."""
        written, _ = self.network.translate(self.dates[:HELD_OUT], self.lengths[:HELD_OUT])
        return {"accuracy": (written == self.targets[:HELD_OUT]).all(1).float().mean().item()}


def draw_picture(tasks: dict[str, DatesTask], text: str, path: Path) -> None:
    """Draw the accuracy by epoch, and the attention weights for `text`."""
    figure = make_figure(10, 4)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    for (kind, task), colour in zip(tasks.items(), COLOURS, strict=False):
        accuracy = [numbers["accuracy"] for numbers in task.scores]
        left.plot(range(1, 1 + len(accuracy)), accuracy, "o-", markersize=3, color=colour, label=kind)
    left.set(xlabel="epoch", ylabel="held-out dates all right", ylim=(-0.02, 1.02))
    left.legend()
    right.set_axis_off()
    if "attention" in tasks:
        written, looked = tasks["attention"].network.translate(*tasks["attention"].prepare([text]))
        right.set_axis_on()
        right.imshow(looked[0].numpy(), cmap="Blues", vmin=0, vmax=1)
        right.set_xticks(range(len(text)), list(text), family="monospace")
        right.set_yticks(range(ISO_LENGTH), [OUTPUT_CHARACTERS[code] for code in written[0]], family="monospace")
        right.set(title="where attention looks", xlabel="read", ylabel="written")
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("seq2seq", __doc__, epochs=8, batch=64, learning_rate=3e-3)
    add = parser.add_argument_group("data and model").add_argument
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="the ways to compare (%(default)s)")
    add("--dates", type=int, default=10000, help="how many dates to train on (%(default)s)")
    add("--hidden", type=int, default=128, help="size of the states (%(default)s)")
    add("--date", default="friday, 13 november 1998", help="the date to show (%(default)r)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, DatesTask]:
    """One model for each way, all with the same dates in the same order."""
    return {kind: DatesTask(options, kind) for kind in options.kinds}


def main(arguments: list[str] | None = None) -> Numbers:
    """Train, and show how each way writes one date."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    text = options.date.lower()
    for kind, task in tasks.items():
        written, _ = task.network.translate(*task.prepare([text]))
        print(f"{kind}: {text!r} is {''.join(OUTPUT_CHARACTERS[code] for code in written[0])}")
    draw_picture(tasks, text, options.picture)
    return {f"accuracy of {kind}": task.scores[-1]["accuracy"] for kind, task in tasks.items()}


if __name__ == "__main__":
    main()
