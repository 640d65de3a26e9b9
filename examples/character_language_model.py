"""A character language model with fused_rnn.LSTM, on text that every Python carries, or on your own.

    python -m examples.character_language_model --steps 2000
    python -m examples.character_language_model --text book.txt --layers 2 --hidden 512 --checkpoint book.pt

The text is cut into `batch` long streams that are read side by side, `time` characters a step. The state is carried
from one step to the next and the gradient stops there (truncated backpropagation through time). Ctrl-C ends after the
step that is running; with a checkpoint the next call goes on from there as if nothing had happened.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fused_rnn

State = tuple[Tensor, Tensor]

HELD_OUT = 0.05  # the part of the text, at its end, that is not trained on


@dataclass(frozen=True)
class Vocabulary:
    """The characters of a text; a character's place among them is its code."""

    characters: str

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """All characters that occur in `text`.

        Example:
            >>> Vocabulary.of("banana").characters
            'abn'
        """
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> Tensor:
        """The codes of `text`, `[characters]`; characters that are not in the vocabulary are left out."""
        codes = {character: code for code, character in enumerate(self.characters)}
        return torch.tensor([codes[character] for character in text if character in codes])

    def decode(self, codes: list[int]) -> str:
        """The text of `codes`."""
        return "".join(self.characters[code] for code in codes)


class CharacterModel(nn.Module):
    """Embedding, LSTM and a linear layer that scores the next character.

    Args:
        characters: Size of the vocabulary.
        embedding_size: Size of a character's vector.
        hidden_size: Size of the LSTM's state.
        num_layers: Layers of the LSTM.
        lstm: The LSTM's class; `torch.nn.LSTM` takes the same arguments and weights.
    """

    def __init__(
        self,
        characters: int,
        embedding_size: int = 64,
        hidden_size: int = 256,
        num_layers: int = 1,
        lstm: Callable[[int, int, int], nn.Module] = fused_rnn.LSTM,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, embedding_size)
        self.lstm = lstm(embedding_size, hidden_size, num_layers)
        self.scores = nn.Linear(hidden_size, characters)

    def forward(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Scores of the next characters `[time, batch, characters]` and the new state, from `codes` `[time, batch]`."""
        output, state = self.lstm(self.embedding(codes), state)
        return self.scores(output), state


class Streams:
    """A text as `batch` streams, read side by side in windows of `time` characters.

    Args:
        codes: The text, `[characters]`, longer than `batch * time`.
        batch: Number of streams.
        time: Characters a window.

    Raises:
        ValueError: The text is too short for one window.
    """

    def __init__(self, codes: Tensor, batch: int, time: int) -> None:
        length = len(codes) // batch
        self.windows = (length - 1) // time
        if self.windows < 1:
            raise ValueError(f"{len(codes)} characters are too few for {batch} streams of {time} and one more")
        self._codes = codes[: batch * length].view(batch, length).t()
        self._time = time

    def window(self, step: int) -> tuple[Tensor, Tensor]:
        """Characters `[time, batch]` and those that follow them; after the last window comes the first one again."""
        start = step % self.windows * self._time
        window = self._codes[start : start + self._time + 1]
        return window[:-1], window[1:]

    def begins(self, step: int) -> bool:
        """Whether the streams begin anew at `step`, so that no state is to be carried into it."""
        return step % self.windows == 0


def load_text(path: Path | None = None) -> str:
    """The text of a file, or the documentation of Python's language that `help()` shows."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n".join(topics.values())


def split(text: str) -> tuple[str, str]:
    """The text to train on and the text that is held out."""
    end = int(len(text) * (1 - HELD_OUT))
    return text[:end], text[end:]


class Trainer:
    """A model in training, with all that it takes to go on from any step.

    Args:
        model: Is changed.
        streams: The text, one window a step.
        learning_rate: Of Adam.
        clip: The largest norm of all gradients together.
    """

    def __init__(self, model: CharacterModel, streams: Streams, learning_rate: float, clip: float) -> None:
        self.model = model
        self.steps_done = 0
        self._streams = streams
        self._optimizer = torch.optim.Adam(model.parameters(), learning_rate)
        self._clip = clip
        self._state: State | None = None

    def step(self) -> float:
        """One window forward and backward and one step of Adam; returns the mean loss in nats a character."""
        inputs, targets = self._streams.window(self.steps_done)
        scores, state = self.model(inputs, None if self._streams.begins(self.steps_done) else self._state)
        loss = cross_entropy(scores.flatten(0, 1), targets.flatten())
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._optimizer.step()
        self._state = (state[0].detach(), state[1].detach())
        self.steps_done += 1
        return loss.item()

    def save(self, path: Path) -> None:
        """Write a checkpoint; a crash meanwhile leaves the old one as it was."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".unfinished")
        content = {"steps_done": self.steps_done, "state": self._state}
        torch.save(content | {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}, unfinished)
        os.replace(unfinished, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of a model of the same sizes, on the same text."""
        content = torch.load(path, weights_only=True)
        self.model.load_state_dict(content["model"])
        self._optimizer.load_state_dict(content["optimizer"])
        self.steps_done, self._state = content["steps_done"], content["state"]


@torch.no_grad()
def perplexity(model: CharacterModel, streams: Streams) -> float:
    """How many characters the model hesitates between: the exponential of its mean loss over all of `streams`."""
    state, losses = None, []
    for step in range(streams.windows):
        inputs, targets = streams.window(step)
        scores, state = model(inputs, state)
        losses.append(cross_entropy(scores.flatten(0, 1), targets.flatten()).item())
    return math.exp(sum(losses) / len(losses))


@torch.no_grad()
def generate(
    model: CharacterModel, vocabulary: Vocabulary, prompt: str, length: int, temperature: float = 0.8, seed: int = 0
) -> str:
    """Let the model continue `prompt` by `length` characters.

    Args:
        model: The model.
        vocabulary: Of the text that it was trained on.
        prompt: The beginning; characters unknown to the vocabulary are left out, at least one must be known.
        length: How many characters to draw.
        temperature: Below 1 the likely becomes more likely, towards 0 certain.
        seed: The same one draws the same text.

    Returns:
        Prompt and continuation.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = vocabulary.encode(prompt).tolist()
    scores, state = model(torch.tensor(codes)[:, None])
    for _ in range(length):
        chances = torch.softmax(scores[-1, 0] / max(temperature, 1e-4), dim=-1)
        codes.append(int(torch.multinomial(chances, 1, generator=generator)))
        scores, state = model(torch.tensor(codes[-1:])[:, None], state)
    return vocabulary.decode(codes)


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate and draw a sample, as the command line says."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    text = load_text(options.text)
    vocabulary = Vocabulary.of(text)
    training, held_out = (Streams(vocabulary.encode(part), options.batch, options.time) for part in split(text))
    model = CharacterModel(len(vocabulary.characters), options.embedding, options.hidden, options.layers)
    trainer = Trainer(model, training, options.learning_rate, options.clip)
    if options.checkpoint and options.checkpoint.exists():
        trainer.resume(options.checkpoint)
        print(f"resumed {options.checkpoint} at step {trainer.steps_done}")
    stop = _StopAfterStep()
    begin, first = perf_counter(), trainer.steps_done
    while trainer.steps_done < options.steps and not stop.asked:
        loss = trainer.step()
        done = trainer.steps_done
        speed = (done - first) / (perf_counter() - begin)
        _show_progress(done, options.steps, f"loss {loss:.3f}  {speed:.1f} steps/s")
        if options.checkpoint and (done % options.save_every == 0 or done == options.steps or stop.asked):
            trainer.save(options.checkpoint)
    print(f"\nperplexity on held-out text: {perplexity(model, held_out):.3f}\n")
    print(generate(model, vocabulary, options.prompt, options.length, options.temperature, options.seed))


class _StopAfterStep:
    """Turns the first Ctrl-C into a request, so that no step is left half done; a second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        self._previous = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._previous)


def _show_progress(step: int, steps: int, note: str) -> None:
    if not sys.stderr.isatty() and step % 100 and step != steps:
        return
    done = 30 * step // steps
    bar = "#" * done + "." * (30 - done)
    print(f"\r[{bar}] {step}/{steps}  {note}  ", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="character_language_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", type=Path, help="a UTF-8 file (default: the topics of Python's own documentation)")
    add(
        "--steps", type=int, default=1000, help="steps in all, those before a resumed checkpoint included (%(default)s)"
    )
    add("--batch", type=int, default=32, help="streams read side by side (%(default)s)")
    add("--time", type=int, default=100, help="characters a step (%(default)s)")
    add("--embedding", type=int, default=64, help="size of a character's vector (%(default)s)")
    add("--hidden", type=int, default=256, help="size of the LSTM's state (%(default)s)")
    add("--layers", type=int, default=1, help="layers of the LSTM (%(default)s)")
    add("--learning-rate", type=float, default=3e-3, help="of Adam (%(default)s)")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients (%(default)s)")
    add("--seed", type=int, default=0, help="of the initial weights and of the sample (%(default)s)")
    add("--checkpoint", type=Path, help="a file to save to, and to resume from if it is there")
    add("--save-every", type=int, default=200, help="steps between two checkpoints (%(default)s)")
    add("--prompt", default="The ", help="the beginning of the sample (%(default)r)")
    add("--length", type=int, default=500, help="characters of the sample (%(default)s)")
    add("--temperature", type=float, default=0.8, help="of the sample; lower is more certain (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
