"""Label every step of ragged sequences: where words end in text without spaces, read forward only or both ways.

    python -m examples.classifier
    python -m examples.classifier --show "thequickbrownfoxjumpsoverthelazydog"

A model that has read "the" cannot know whether this is the beginning of "there" or "then"; one that also reads from the
end can. The sentences are from Python's own documentation. Their lengths differ, so a batch is ragged: the layer takes
`lengths`, begins the reverse direction at each sentence's own end, and returns zeros after it. Sentences need not be
sorted or packed, padding is not computed, and the loss excludes it. Both models have equally many outputs.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence

from examples.common import COLOURS, Numbers, Task, base_parser, format_numbers, make_figure, save_figure, train
from examples.layers import CHOICES, Layers

DIRECTIONS = ("forward only", "both directions")
HELD_OUT = 400
FEWEST_WORDS, MOST_WORDS = 4, 40
CODES = 128  # ASCII; other characters count as 0


def load_sentences() -> list[str]:
    """All different sentences of 4 to 40 words, one space between two words, in alphabetical order.

    Example:
        >>> len(load_sentences()) > 2000
        True
    """
    parts = re.split(r"(?<=[.:?!])\s+|\n\n", "\n\n".join(topics.values()))
    sentences = {" ".join(part.split()) for part in parts if FEWEST_WORDS <= len(part.split()) <= MOST_WORDS}
    return sorted(sentences)


def encode(sentences: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Letters without spaces, `[batch, time]`; 1 for those that end a word, of the same shape; and lengths, `[batch]`.

    Example:
        >>> letters, ends, lengths = encode(["to be", "or"])
        >>> "".join(map(chr, letters[0])), ends, lengths
        ('tobe', tensor([[0., 1., 0., 1.],
                [0., 1., 0., 0.]]), tensor([4, 2]))
    """
    words = [sentence.split() for sentence in sentences]
    codes = [torch.tensor([ord(letter) % CODES for letter in "".join(each)]) for each in words]
    ends = [torch.cat([torch.eye(len(word))[-1] for word in each]) for each in words]
    lengths = torch.tensor([len(code) for code in codes])
    return pad_sequence(codes, batch_first=True), pad_sequence(ends, batch_first=True), lengths


def set_spaces(letters: str, ends: Tensor) -> str:
    """The text with a space after each letter that ends a word."""
    return "".join(letter + (" " if end else "") for letter, end in zip(letters, ends, strict=True)).rstrip()


class Labeller(nn.Module):
    """Scores how likely each letter ends a word.

    Args:
        layers: The choice of layers, from which it takes the GRU.
        bidirectional: Whether a second direction reads the sentence from its end.
        hidden_size: Size of the output, of both directions together.
        embedding_size: Size of a letter's vector.
    """

    def __init__(self, layers: Layers, bidirectional: bool, hidden_size: int, embedding_size: int = 32) -> None:
        super().__init__()
        each = hidden_size // 2 if bidirectional else hidden_size
        self.embedding = nn.Embedding(CODES, embedding_size)
        self.recurrent = layers.gru(embedding_size, each, batch_first=True, bidirectional=bidirectional)
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, letters: Tensor, lengths: Tensor) -> Tensor:
        """Scores `[batch, time]`, above zero for the end of a word.

        Args:
            letters: `[batch, time]`, with any values after the end of a sentence.
            lengths: Letters of each sentence, `[batch]`.
        """
        output, _ = self.recurrent(self.embedding(letters), lengths=lengths)
        return self.score(output)[..., 0]


class SpacesTask(Task):
    """A labeller and the sentences.

    Args:
        options: The options of the command line.
        bidirectional: Whether a sentence is read in both directions.
    """

    unit = "sentences"

    def __init__(self, options: argparse.Namespace, bidirectional: bool) -> None:
        sentences = load_sentences()
        order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(options.seed))
        order = order[: HELD_OUT + options.sentences if options.sentences else None]
        self.letters, self.ends, self.lengths = encode([sentences[index] for index in order])
        torch.manual_seed(options.seed)
        self.network = Labeller(CHOICES[options.layer], bidirectional, options.hidden)
        super().__init__(self.network, len(order) - HELD_OUT, options, clip=1.0, decay=True)

    def label(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and right labels of all letters of some sentences, without the padding, `[letters]`."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        real = torch.arange(longest) < lengths[:, None]
        return self.network(self.letters[rows, :longest], lengths)[real], self.ends[rows, :longest][real]

    def loss(self, step: int) -> Tensor:
        """The mean cross entropy of a letter, in nats."""
        return binary_cross_entropy_with_logits(*self.label(HELD_OUT + self.batch_of(step)))

    def evaluate(self) -> Numbers:
        """F1, the harmonic mean of precision and recall, of the ends of words in held-out sentences."""
        scores, ends = self.label(torch.arange(HELD_OUT))
        found = scores > 0
        return {"F1": (2 * (found * ends).sum() / (found.sum() + ends.sum())).item()}

    @torch.no_grad()
    def read(self, letters: str) -> str:
        """Return a text without spaces with spaces between its words."""
        codes, _, lengths = encode([letters])
        return set_spaces(letters, self.network(codes, lengths)[0] > 0)


def draw_picture(tasks: dict[str, SpacesTask], texts: list[str], path: Path) -> None:
    """Draw F1 by epoch, and some texts as each model reads them."""
    figure = make_figure(10, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    right.set_axis_off()
    right.set(xlim=(0, 1), ylim=(3 * len(texts), 0))
    for line, text in enumerate(texts):
        right.text(0, 3 * line + 0.5, text, family="monospace", fontsize=11, color="0.5")
    for number, ((name, task), colour) in enumerate(zip(tasks.items(), COLOURS, strict=False)):
        scores = [numbers["F1"] for numbers in task.scores]
        left.plot(range(1, 1 + len(scores)), scores, "o-", markersize=3, color=colour, label=name)
        for line, text in enumerate(texts):
            right.text(0, 3 * line + 1.2 + 0.7 * number, task.read(text), family="monospace", fontsize=11, color=colour)
    left.set(title="ends of words in held-out sentences", xlabel="epoch", ylabel="F1")
    left.legend()
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("classifier", __doc__, epochs=8, batch=32, learning_rate=5e-3)
    add = parser.add_argument_group("data and model").add_argument
    add("--sentences", type=int, help="how many sentences to train on (all)")
    add("--hidden", type=int, default=128, help="size of the output, of both directions together (%(default)s)")
    shown = ["thereisnoneedtocallthemethod", "ifanerroroccursthenthefileisclosed", "noneofthesenameswasimported"]
    add("--show", nargs="+", default=shown, help="texts without spaces to read")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, SpacesTask]:
    """One model that reads forward only, one that reads in both directions."""
    return {name: SpacesTask(options, name == DIRECTIONS[1]) for name in DIRECTIONS}


def main(arguments: list[str] | None = None) -> Numbers:
    """Train, read the texts to show, and draw."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    for name, task in tasks.items():
        print(f"{name}:", "; ".join(task.read(text) for text in options.show))
    draw_picture(tasks, options.show, options.picture)
    numbers = {f"F1 {name}": task.scores[-1]["F1"] for name, task in tasks.items()}
    print(format_numbers(numbers))
    return numbers


if __name__ == "__main__":
    main()
