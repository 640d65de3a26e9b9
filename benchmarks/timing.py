"""Measures times as medians of interleaved rounds.

The speed of a machine drifts with other users and clock rates. So every peer has one turn in every round, in an order
that is reversed from one round to the next, and the drift affects all peers equally.

A turn of a short call consists of many calls, the first of which is not timed. So for every peer weights are in the
caches as in a program that calls nothing else: a single step of batch 1 is measured as one step of a longer stream.
A stream whose program does other work between two steps finds the caches cold, which is measured apart.

A peer whose threads keep spinning (ONNX Runtime) would slow the others down. It is timed alone, between two halves of
the rounds of all others, and is deleted afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median, quantiles
from time import perf_counter

import torch

from benchmarks.cases import Mode
from benchmarks.problem import Peer

Function = Callable[[], object]

TURN_SECONDS = 0.005
COLD_MATTERS_SECONDS = 0.02
MIN_ROUNDS = 5
MAX_ROUNDS = 60


@dataclass(frozen=True)
class Measurement:
    """Times of one call in seconds: the median, the distance between the quartiles, and how many rounds there were."""

    median: float
    spread: float
    rounds: int

    @classmethod
    def of(cls, samples: list[float]) -> Measurement:
        """Summarise `samples` (seconds, at least two)."""
        lower, _, upper = quantiles(samples, n=4, method="inclusive")
        return cls(median(samples), upper - lower, len(samples))


def time_peers(peers: Sequence[Peer], mode: Mode, seconds: float, *, cold: bool = False) -> dict[str, Measurement]:
    """Time all peers of a case against each other.

    Args:
        peers: The peers; those that do not support this mode are skipped.
        mode: Forward calls run without gradients.
        seconds: About how long the measurement takes.
        cold: Whether the caches are emptied before each call, as by a program that does other work between two calls.

    Returns:
        The time of one call of each peer, by its name.
    """
    before = empty_caches if cold else None
    supporting = [peer for peer in peers if mode in peer.modes]
    solitary = [peer for peer in supporting if peer.alone]
    share_seconds = seconds / (2 + len(solitary) if solitary else 1)
    with torch.set_grad_enabled(mode == "training"):
        together = {peer.name: peer.prepare(mode) for peer in supporting if not peer.alone}
        samples = time_together(together, share_seconds, before=before)
        for peer in solitary:
            samples |= time_together({peer.name: peer.prepare(mode)}, share_seconds, before=before)
        if solitary:
            for name, more in time_together(together, share_seconds, before=before).items():
                samples[name] += more
    return {name: Measurement.of(values) for name, values in samples.items()}


def time_together(
    functions: Mapping[str, Function],
    seconds: float,
    wait: Function = lambda: None,
    before: Function | None = None,
) -> dict[str, list[float]]:
    """Time functions against each other in interleaved rounds.

    Args:
        functions: The functions to call, by name.
        seconds: About how long the measurement takes; at least `MIN_ROUNDS` rounds are made in any case.
        wait: Returns when all calls have finished, which a GPU only queues.
        before: Called before each timed call, and not timed; a turn is a single call then.

    Returns:
        For each name, the seconds of one call in each round.
    """
    turns = {name: _Turn.fitted_to(function, wait, before) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter() + seconds
        for done in range(MAX_ROUNDS):
            if done >= MIN_ROUNDS and perf_counter() > end:
                break
            for name in order:
                samples[name].append(turns[name].time())
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return samples


@dataclass(frozen=True)
class _Turn:
    """One turn of a function: first an untimed call if calls are short, then the timed calls."""

    function: Function
    wait: Function
    untimed: int
    timed: int
    before: Function | None = None

    @classmethod
    def fitted_to(cls, function: Function, wait: Function, before: Function | None = None) -> _Turn:
        """Warm up `function`, and choose the number of calls from the time of one call."""
        cls(function, wait, 0, 1).time()
        if before is not None:
            return cls(function, wait, 0, 1, before)
        once = cls(function, wait, 0, 1).time()
        if once < TURN_SECONDS:
            once = cls(function, wait, 0, 5).time()
        return cls(function, wait, int(once < COLD_MATTERS_SECONDS), max(1, int(TURN_SECONDS / once)))

    def time(self) -> float:
        """Make the calls, and return the seconds of one."""
        for _ in range(self.untimed):
            self.function()
        if self.before is not None:
            self.before()
        self.wait()
        start = perf_counter()
        for _ in range(self.timed):
            self.function()
        self.wait()
        return (perf_counter() - start) / self.timed


def empty_caches() -> None:
    """Read more memory than caches hold, so that they keep nothing else."""
    _memory().sum()


@cache
def _memory() -> torch.Tensor:
    return torch.ones(1 << 25)  # 128 MB, all written, since untouched memory is one page of zeros
