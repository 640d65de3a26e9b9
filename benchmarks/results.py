"""The results of a run, which are saved as JSON and loaded again for tables and charts."""

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

OURS, THEIRS = "fused", "torch"  # the examples' names for our layers and torch.nn's


@dataclass(frozen=True)
class Result:
    """All peers' times of one case in one mode.

    Attributes:
        group: The group of cases that share a geometric mean.
        label: The case's sizes.
        mode: Forward, or forward and backward ("training").
        operations: The necessary additions and multiplications.
        limit_seconds: The least possible time, from the measured limits of the machine.
        times: The time of one call, by peer.
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
        """How many operations the fused kernels perform in a nanosecond."""
        return 1e-9 * self.operations / self.fused.median

    @property
    def share(self) -> float:
        """The ratio of the least possible time to the time of the fused kernels."""
        return self.limit_seconds / self.fused.median

    def ratios(self) -> dict[str, float]:
        """The ratio of each peer's time to the time of the fused kernels."""
        return {name: time.median / self.fused.median for name, time in self.times.items() if name != FUSED}


@dataclass(frozen=True)
class TrainingResult:
    """The training of one model of an example, with our layers and with torch.nn's.

    Attributes:
        example: The name of the module in `examples`.
        name: The example's name of the model.
        unit: The unit of the training data, in the plural, such as "tokens".
        units_per_step: How many units an optimizer step trains on.
        steps_per_epoch: The number of optimizer steps in an epoch.
        steps: The number of optimizer steps that each model made.
        compared_steps: The number of first steps whose losses were compared.
        tolerance: The largest relative difference of the losses that is allowed.
        difference: The largest relative difference over the compared steps.
        step_times: The time of one optimizer step, by layers.
        losses: The mean loss of the last steps, by layers.
        scores: The scores on held-out data, by layers.
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
        """Example and model, such as `seq2seq: attention`."""
        return f"{self.example}: {self.name}"

    @property
    def ratio(self) -> float:
        """The ratio of the time of a step with torch.nn's layers to that with ours."""
        return self.step_times[THEIRS].median / self.step_times[OURS].median

    def epoch_seconds(self, layers: str) -> float:
        """The time of an epoch in seconds."""
        return self.steps_per_epoch * self.step_times[layers].median

    def units_per_second(self, layers: str) -> float:
        """How many units are trained on in a second."""
        return self.units_per_step / self.step_times[layers].median


@dataclass(frozen=True)
class MemoryResult:
    """The memory of one call of each peer.

    Attributes:
        group: The kind of layer.
        label: The case's sizes.
        mode: Forward, or forward and backward ("training").
        bytes_taken: The bytes that a call adds to the resident memory at its peak, by peer.
    """

    group: str
    label: str
    mode: Mode
    bytes_taken: dict[str, int]

    def ratios(self) -> dict[str, float]:
        """The ratio of each peer's memory to that of the fused kernels."""
        ours = self.bytes_taken[FUSED]
        return {name: taken / ours for name, taken in self.bytes_taken.items() if name != FUSED}


@dataclass
class Run:
    """All results of one run, and the machine."""

    machine: dict[str, str | int]
    peak_gflops: dict[str, float] = field(default_factory=dict)
    read_gigabytes: dict[str, float] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    training: list[TrainingResult] = field(default_factory=list)
    memory: list[MemoryResult] = field(default_factory=list)
    not_installed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def groups(self) -> dict[tuple[str, Mode], list[Result]]:
        """The results by group and mode, in the order of the run, with a group's forward mode before its training."""
        grouped: dict[tuple[str, Mode], list[Result]] = {}
        for result in self.results:
            for mode in ("forward", "training"):
                grouped.setdefault((result.group, mode), [])
            grouped[result.group, result.mode].append(result)
        return {key: results for key, results in grouped.items() if results}

    def save(self, path: Path) -> None:
        """Save the run as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Load a run that `save` wrote."""
        data = json.loads(path.read_text())
        data["results"] = [Result(**{**entry, "times": _times(entry["times"])}) for entry in data["results"]]
        data["training"] = [
            TrainingResult(**{**entry, "step_times": _times(entry["step_times"])}) for entry in data["training"]
        ]
        data["memory"] = [MemoryResult(**entry) for entry in data.get("memory", [])]  # older files have none
        return cls(**data)


@dataclass(frozen=True)
class Summary:
    """One peer over all cases of a group: the geometric mean of its ratios, and the fused kernels' worst case."""

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
