"""A language model of words and one of characters, on text that every Python carries or on your own.

    python -m examples.language_model
    python -m examples.language_model --text book.txt --tokens characters --hidden 512 --prompt "Once upon a time"
    python -m examples.language_model --cell GRU --num-layers 3 --temperature 0 0.7

The model has an embedding, stacked LSTM or GRU layers with dropout between them, and scores of the next token computed
with the embedding's weights. The text is divided into `batch` long streams that are read in parallel, `time` tokens in
a step; the state is passed from one step to the next, but not the gradient (truncated backpropagation through time).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.common import COLOURS, Numbers, Task, base_parser, make_figure, save_figure, train
from examples.layers import CHOICES, Layers
from examples.text import Streams, Vocabulary, load_text, split_tokens

State = Tensor | tuple[Tensor, Tensor]

HELD_OUT = 0.1  # the part of the text, at its end, that is not trained on
HELD_OUT_STREAMS = 8
TOKENS = ("words", "characters")
MIN_COUNT = {"words": 2, "characters": 1}
JOINTS = {"words": " ", "characters": ""}


class LanguageModel(nn.Module):
    """Scores the next token from all tokens before it.

    Args:
        layers: The choice of layers, from which it takes the LSTM or GRU.
        cell: "LSTM" or "GRU".
        tokens: The size of the vocabulary.
        hidden_size: The size of a token's vector and of the layers' states.
        num_layers: The number of stacked layers.
        dropout: The probability with which values before, between and after the layers become zero in training.
    """

    def __init__(
        self, layers: Layers, cell: str, tokens: int, hidden_size: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, hidden_size)
        make = layers.lstm if cell == "LSTM" else layers.gru
        self.recurrent = make(hidden_size, hidden_size, num_layers, dropout=dropout if num_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(hidden_size, tokens)
        # A compromise between a good size of a layer's input, 1, and of the weights of scores, 1 / sqrt(hidden_size).
        nn.init.normal_(self.embedding.weight, 0, 0.4)
        self.scores.weight = self.embedding.weight  # tied weights: a token's score is the product with its vector

    def forward(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Scores `[time, batch, tokens]` of the token after each of `codes` `[time, batch]`, and the new state."""
        output, state = self.recurrent(self.dropout(self.embedding(codes)), state)
        return self.scores(self.dropout(output)), state


class TextTask(Task):
    """A language model and its text, as words or as characters."""

    unit = "tokens"

    def __init__(self, options: argparse.Namespace, kind: str) -> None:
        torch.manual_seed(options.seed)
        text = load_text(options.text)[: options.length]
        end = int(len(text) * (1 - HELD_OUT))
        training, held_out = split_tokens(text[:end], kind), split_tokens(text[end:], kind)
        self.kind = kind
        self.vocabulary = Vocabulary.of(training, MIN_COUNT[kind])  # must not contain words of the held-out part only
        self.streams = Streams(self.vocabulary.encode(training), options.batch, options.time)
        self.held_out = Streams(self.vocabulary.encode(held_out), HELD_OUT_STREAMS, options.time)
        layers, size = CHOICES[options.layer], len(self.vocabulary.tokens)
        self.network = LanguageModel(layers, options.cell, size, options.hidden, options.num_layers, options.dropout)
        super().__init__(self.network, self.streams.windows * options.batch, options, clip=options.clip, decay=True)
        self.units_per_step = options.batch * options.time
        self._state: State | None = None

    def loss(self, step: int) -> Tensor:
        """The mean cross entropy in nats of one window of all streams; only the state is passed to the next window."""
        number = step % self.steps_per_epoch
        inputs, targets = self.streams.window(number)
        scores, state = self.network(inputs, self._state if number else None)
        self._state = state.detach() if isinstance(state, Tensor) else (state[0].detach(), state[1].detach())
        return cross_entropy(scores.flatten(0, 1), targets.flatten())

    def evaluate(self) -> Numbers:
        """The perplexity of the held-out text: the exponential of the mean loss."""
        state, losses = None, []
        for number in range(self.held_out.windows):
            inputs, targets = self.held_out.window(number)
            scores, state = self.network(inputs, state)
            losses.append(cross_entropy(scores.flatten(0, 1), targets.flatten()).item())
        return {"perplexity": math.exp(sum(losses) / len(losses))}

    def state_dict(self) -> dict:
        """The state of the training, with the state of the layers at the end of the last window."""
        return super().state_dict() | {"carried": self._state}

    def load_state_dict(self, state: dict) -> None:
        """Resume from a `state_dict`, with the state of the layers."""
        super().load_state_dict(state)
        self._state = state["carried"]

    @torch.no_grad()
    def continue_text(self, prompt: str, length: int, temperature: float, seed: int) -> str:
        """Continue `prompt` by `length` tokens: the likeliest ones at temperature 0, else random ones."""
        self.network.eval()
        generator = torch.Generator().manual_seed(seed)
        tokens = split_tokens(prompt, self.kind)
        probabilities, state = self.next_probabilities(tokens, None, temperature)
        for _ in range(length):
            tokens.append(self.vocabulary.tokens[int(torch.multinomial(probabilities, 1, generator=generator))])
            probabilities, state = self.next_probabilities(tokens[-1:], state, temperature)
        text = JOINTS[self.kind].join(tokens)
        return re.sub(r" ([,.;:!?)\]])", r"\1", text) if self.kind == "words" else text

    @torch.no_grad()
    def next_probabilities(
        self, tokens: Sequence[str], state: State | None = None, temperature: float = 1.0
    ) -> tuple[Tensor, State]:
        """The probabilities `[vocabulary]` of the token after `tokens`, 0 for the unknown one, and the new state."""
        scores, state = self.network(self.vocabulary.encode(tokens)[:, None], state)
        scores = scores[-1, 0]
        scores[0] = -math.inf
        if temperature == 0:
            return nn.functional.one_hot(scores.argmax(), len(scores)).float(), state
        return torch.softmax(scores / temperature, dim=0), state


def show(task: TextTask, options: argparse.Namespace) -> None:
    """Print the likeliest next tokens, and a continuation of the prompt at each temperature."""
    task.network.eval()
    probabilities, _ = task.next_probabilities(split_tokens(options.prompt, task.kind))
    best = [f"{task.vocabulary.tokens[code]!r} {probabilities[code]:.1%}" for code in probabilities.topk(5).indices]
    print(f"\n{task.kind}, {len(task.vocabulary.tokens)} in the vocabulary: after {options.prompt!r} {', '.join(best)}")
    for temperature in options.temperature:
        text = task.continue_text(options.prompt, options.draw, temperature, options.seed)
        print(f"temperature {temperature}: {text}")


def draw_picture(tasks: dict[str, TextTask], path: Path) -> None:
    """Draw the perplexity by epoch, on the training text and on the held-out text."""
    figure = make_figure(4.5 * len(tasks), 3.2)
    for axis, (kind, task) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        epochs = torch.tensor(task.losses).view(-1, task.steps_per_epoch)
        axis.plot(
            range(1, len(epochs) + 1), epochs.mean(1).exp().tolist(), color=COLOURS[0], label="training (with dropout)"
        )
        held_out = [numbers["perplexity"] for numbers in task.scores]
        axis.plot(range(1, len(epochs) + 1), held_out, color=COLOURS[1], label="held out")
        axis.set(title=kind, xlabel="epoch", ylabel="perplexity", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.legend()
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("language_model", __doc__, epochs=6, batch=32, learning_rate=3e-3)
    add = parser.add_argument_group("text and model").add_argument
    add("--text", type=Path, help="a UTF-8 file (default: the topics of Python's own documentation)")
    add("--length", type=int, help="how many characters of it to read (all)")
    add("--tokens", nargs="+", choices=TOKENS, default=TOKENS, help="what to model (%(default)s)")
    add("--time", type=int, default=64, help="tokens a step (%(default)s)")
    add("--cell", choices=("LSTM", "GRU"), default="LSTM", help="the layers (%(default)s)")
    add("--hidden", type=int, default=256, help="size of a token's vector and of the state (%(default)s)")
    add("--num-layers", type=int, default=2, help="how many layers are stacked (%(default)s)")
    add("--dropout", type=float, default=0.3, help="between the layers (%(default)s)")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients (%(default)s)")
    add = parser.add_argument_group("drawing").add_argument
    add("--prompt", default="The value of the", help="the beginning to go on with (%(default)r)")
    add("--draw", type=int, default=60, help="tokens to draw (%(default)s)")
    add("--temperature", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5], help="0: the likeliest (%(default)s)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, TextTask]:
    """One model for words, one for characters."""
    return {kind: TextTask(options, kind) for kind in options.tokens}


def main(arguments: list[str] | None = None) -> Numbers:
    """Run the command line: train, evaluate and draw samples."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    for task in tasks.values():
        show(task, options)
    draw_picture(tasks, options.picture)
    return {f"perplexity of {kind}": task.scores[-1]["perplexity"] for kind, task in tasks.items()}


if __name__ == "__main__":
    main()
