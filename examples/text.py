"""Text for a language model: tokens, the vocabulary that maps them to codes, and streams of codes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor

UNKNOWN = "<unknown>"


def load_text(path: Path | None = None) -> str:
    """The text of a file, or the topics of Python's `help()` without repeated paragraphs."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    return "\n\n".join(dict.fromkeys("\n\n".join(topics.values()).split("\n\n")))


def split_tokens(text: str, kind: str) -> list[str]:
    """The "words" or "characters" of a text; with words, each punctuation mark is a separate token.

    Example:
        >>> split_tokens("No, it isn't.", "words")
        ['No', ',', 'it', 'isn', "'", 't', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text) if kind == "words" else list(text)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model knows; the code of a token is its index, and code 0 stands for all unknown tokens.

    Example:
        >>> vocabulary = Vocabulary.of("to be or not to be".split(), min_count=2)
        >>> vocabulary.tokens
        ('<unknown>', 'to', 'be')
        >>> vocabulary.encode("to see".split())
        tensor([1, 0])
    """

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, tokens: Sequence[str], min_count: int) -> Vocabulary:
        """The tokens that occur at least `min_count` times, frequent ones first."""
        return cls((UNKNOWN, *(token for token, count in Counter(tokens).most_common() if count >= min_count)))

    def encode(self, tokens: Sequence[str]) -> Tensor:
        """The codes of `tokens`, `[tokens]`."""
        codes = {token: code for code, token in enumerate(self.tokens)}
        return torch.tensor([codes.get(token, 0) for token in tokens])


class Streams:
    """A text as `batch` streams, read in parallel in windows of `time` tokens.

    Args:
        codes: The text, `[tokens]`, longer than `batch * time`.
        batch: The number of streams.
        time: The number of tokens in a window.

    Raises:
        ValueError: The text is too short for one window.
    """

    def __init__(self, codes: Tensor, batch: int, time: int) -> None:
        length = len(codes) // batch
        self.windows = (length - 1) // time
        if self.windows < 1:
            raise ValueError(f"{len(codes)} tokens are too few for {batch} streams of {time} and one more")
        self._codes = codes[: batch * length].view(batch, length).t()
        self._time = time

    def window(self, number: int) -> tuple[Tensor, Tensor]:
        """The tokens `[time, batch]` of a window, and the tokens that follow each of them."""
        start = number * self._time
        return self._codes[start : start + self._time], self._codes[start + 1 : start + self._time + 1]
