"""The results of a run, which are written to JSON and read back for tables and charts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import exp, log
from pathlib import Path
from typing import Any

from benchmarks.cases import Mode
from benchmarks.problem import FUSED
from benchmarks.timing import Measurement

OURS, THEIRS = "fused", "torch"  # whose layers a training has, as the examples call them


@dataclass(frozen=True)
class Result:
    """All peers' times of one case in one mode.

    Attributes:
        group: The cases over which one geometric mean is taken.
        label: The case's sizes.
        mode: Forward, or forward and backward ("training").
        operations: Additions and multiplications that have to be done.
        limit_seconds: The least time, from the machine's measured limits.
        times: Of one call, by peer.
    """

    group: str
    label: str
    mode: Mode
    operations: int
    limit_seconds: float
    times: dict[str, Measurement]

    @property
    def fused(self) -> Measurement:
        """The time of the fused kernels."""
        return self.times[FUSED]

    @property
    def gflops(self) -> float:
        """Operations that the fused kernels do in a nanosecond."""
        return 1e-9 * self.operations / self.fused.median

    @property
    def share(self) -> float:
        """The least time over the time of the fused kernels."""
        return self.limit_seconds / self.fused.median

    def ratios(self) -> dict[str, float]:
        """How many times as long as the fused kernels each peer takes."""
        return {name: time.median / self.fused.median for name, time in self.times.items() if name != FUSED}


@dataclass(frozen=True)
class TrainingResult:
    """The training of one model of an example, with our layers and with torch.nn's.

    Attributes:
        example: The module in `examples`.
        name: Its name of the model.
        unit: What the model trains on, in the plural.
        units_per_step: How many of them an optimizer step has.
        steps_per_epoch: Optimizer steps in an epoch.
        steps: Optimizer steps that both models made, by turns.
        compared_steps: Over so many first steps the losses have to agree.
        tolerance: The relative difference that is allowed.
        difference: The largest relative difference over these steps.
        step_times: Of one optimizer step, by layers.
        losses: The mean loss of the last steps, by layers.
        scores: On held-out data, by layers.
    """

    example: str
    name: str
    unit: str
    units_per_step: int
    steps_per_epoch: int
    steps: int
    compared_steps: int
    tolerance: float
    difference: float
    step_times: dict[str, Measurement]
    losses: dict[str, float]
    scores: dict[str, dict[str, float]]

    @property
    def title(self) -> str:
        """Such as `seq2seq: attention`."""
        return f"{self.example}: {self.name}"

    @property
    def ratio(self) -> float:
        """How many times as long a step takes with torch.nn's layers."""
        return self.step_times[THEIRS].median / self.step_times[OURS].median

    def epoch_seconds(self, layers: str) -> float:
        """The time of an epoch."""
        return self.steps_per_epoch * self.step_times[layers].median

    def units_per_second(self, layers: str) -> float:
        """How much is trained on in a second."""
        return self.units_per_step / self.step_times[layers].median


@dataclass(frozen=True)
class MemoryResult:
    """The memory of one call of each peer.

    Attributes:
        group: The layer.
        label: The case's sizes.
        mode: Forward, or forward and backward ("training").
        bytes_taken: What a call adds to the resident memory at its peak, by peer.
    """

    group: str
    label: str
    mode: Mode
    bytes_taken: dict[str, int]

    def ratios(self) -> dict[str, float]:
        """How many times as much as the fused kernels each peer takes."""
        ours = self.bytes_taken[FUSED]
        return {name: taken / ours for name, taken in self.bytes_taken.items() if name != FUSED}


@dataclass
class Run:
    """Everything that one run measured, and on which machine."""

    machine: dict[str, str | int]
    peak_gflops: dict[str, float] = field(default_factory=dict)
    read_gigabytes: dict[str, float] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    training: list[TrainingResult] = field(default_factory=list)
    memory: list[MemoryResult] = field(default_factory=list)
    not_installed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def groups(self) -> dict[tuple[str, Mode], list[Result]]:
        """The results by group and mode, in the order of the run; all forward ones of a group before its training."""
        grouped: dict[tuple[str, Mode], list[Result]] = {}
        for result in self.results:
            for mode in ("forward", "training"):
                grouped.setdefault((result.group, mode), [])
            grouped[result.group, result.mode].append(result)
        return {key: results for key, results in grouped.items() if results}

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        data["results"] = [Result(**{**entry, "times": _times(entry["times"])}) for entry in data["results"]]
        data["training"] = [
            TrainingResult(**{**entry, "step_times": _times(entry["step_times"])}) for entry in data["training"]
        ]
        data["memory"] = [MemoryResult(**entry) for entry in data.get("memory", [])]  # older files have none
        return cls(**data)


@dataclass(frozen=True)
class Summary:
    """One peer over all cases of a group: its geometric mean, and the case where the fused kernels do worst."""

    mean: float
    worst: float
    worst_label: str
    lost: int
    cases: int


def summarise(results: Sequence[Result]) -> dict[str, Summary]:
    """Summarise the ratios to each peer over the cases of one group and mode."""
    peers = list(dict.fromkeys(name for result in results for name in result.ratios()))
    summaries = {}
    for peer in peers:
        ratios = [(result.ratios()[peer], result.label) for result in results if peer in result.times]
        worst, worst_label = min(ratios)
        mean = exp(sum(log(ratio) for ratio, _ in ratios) / len(ratios))
        summaries[peer] = Summary(mean, worst, worst_label, sum(ratio < 1 for ratio, _ in ratios), len(ratios))
    return summaries


def _times(entries: dict[str, dict[str, Any]]) -> dict[str, Measurement]:
    return {name: Measurement(**entry) for name, entry in entries.items()}
