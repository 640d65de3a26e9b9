"""The real job: a character language model, trained with fused_rnn.LSTM and with torch.nn.LSTM by turns."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from time import perf_counter

import torch
from torch import nn

import fused_rnn
from benchmarks.checking import CheckError
from benchmarks.results import TrainingResult
from benchmarks.timing import Measurement
from examples.character_language_model import (
    CharacterModel,
    Streams,
    Trainer,
    Vocabulary,
    generate,
    load_text,
    perplexity,
    split,
)

OURS, THEIRS = "fused_rnn.LSTM", "torch.nn.LSTM"

BATCH, TIME = 32, 100
LEARNING_RATE = 3e-3
CLIP = 1.0
# Rounding differs, and training amplifies it from step to step; over the first steps it has no time to.
COMPARED_STEPS = 20
LOSS_TOLERANCE = 1e-4
LAST_STEPS = 50
SAMPLE_CHARACTERS = 400


class _Learner:
    """One of the two models in training, and what was seen of it."""

    def __init__(self, model: CharacterModel, streams: Streams) -> None:
        self.model = model
        self.trainer = Trainer(model, streams, LEARNING_RATE, CLIP)
        self.losses: list[float] = []
        self.times: list[float] = []

    def step(self) -> None:
        begin = perf_counter()
        self.losses.append(self.trainer.step())
        self.times.append(perf_counter() - begin)


def train_language_models(seconds: float, show_progress: Callable[[float], None]) -> TrainingResult:
    """Train both models from the same weights on the same windows, one step each by turns.

    Args:
        seconds: How long both train together; the steps whose losses are compared are made in any case.
        show_progress: Is told which part of `seconds` is over.

    Returns:
        Times, losses, perplexities on held-out text, and text written by the fused model.

    Raises:
        CheckError: The losses of the first steps differ.
    """
    text = load_text()
    vocabulary = Vocabulary.of(text)
    training, held_out = (Streams(vocabulary.encode(part), BATCH, TIME) for part in split(text))
    learners = _make_learners(len(vocabulary.characters), training)
    order = list(learners.values())
    step, begin = 0, perf_counter()
    while step < COMPARED_STEPS or perf_counter() - begin < seconds:
        for learner in order:
            learner.step()
        order.reverse()
        step += 1
        if step == COMPARED_STEPS:
            difference = _compare_losses(learners)
        show_progress(min(1.0, (perf_counter() - begin) / seconds) if seconds else step / COMPARED_STEPS)
    return TrainingResult(
        text=f"documentation of Python's language, {len(text)} characters",
        steps=step,
        compared_steps=COMPARED_STEPS,
        tolerance=LOSS_TOLERANCE,
        difference=difference,
        step_times={name: Measurement.of(learner.times) for name, learner in learners.items()},
        seconds={name: sum(learner.times) for name, learner in learners.items()},
        losses={name: mean(learner.losses[-LAST_STEPS:]) for name, learner in learners.items()},
        perplexities={name: perplexity(learner.model, held_out) for name, learner in learners.items()},
        sample=generate(learners[OURS].model, vocabulary, "The ", SAMPLE_CHARACTERS),
    )


def _make_learners(characters: int, streams: Streams) -> dict[str, _Learner]:
    torch.manual_seed(0)
    ours = CharacterModel(characters, lstm=fused_rnn.LSTM)
    theirs = CharacterModel(characters, lstm=nn.LSTM)
    theirs.load_state_dict(ours.state_dict())
    return {OURS: _Learner(ours, streams), THEIRS: _Learner(theirs, streams)}


def _compare_losses(learners: dict[str, _Learner]) -> float:
    """The largest relative difference of the losses so far, which must be small."""
    pairs = zip(learners[OURS].losses, learners[THEIRS].losses, strict=True)
    difference = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
    if not difference <= LOSS_TOLERANCE:
        raise CheckError(
            f"the language models' losses differ by {difference:.2e} within {COMPARED_STEPS} steps, "
            f"allowed are {LOSS_TOLERANCE:.0e}"
        )
    return difference
