"""What a run leaves behind, as data: written to JSON, read back for tables and charts."""

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


@dataclass(frozen=True)
class Result:
    """All peers' times of one case in one mode.

    Attributes:
        group: The cases over which one geometric mean is taken.
        label: The case's sizes.
        mode: Forward, or forward and backward ("training").
        operations: Those that have to be done.
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
    """The real job: one language model trained twice, with fused_rnn.LSTM and with torch.nn.LSTM.

    Attributes:
        text: What it was trained on.
        steps: Optimizer steps that both models made, by turns.
        compared_steps: Over so many first steps the losses have to agree ...
        tolerance: ... to this relative difference.
        difference: The largest relative difference over these steps.
        step_times: Of one optimizer step, by model.
        seconds: Of all steps, by model.
        losses: The mean loss of the last steps, in nats a character, by model.
        perplexities: On held-out text, by model.
        sample: Text that the fused model wrote.
    """

    text: str
    steps: int
    compared_steps: int
    tolerance: float
    difference: float
    step_times: dict[str, Measurement]
    seconds: dict[str, float]
    losses: dict[str, float]
    perplexities: dict[str, float]
    sample: str


@dataclass
class Run:
    """Everything that one run measured, and where."""

    machine: dict[str, str | int]
    peak_gflops: dict[str, float] = field(default_factory=dict)
    read_gigabytes: dict[str, float] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    training: TrainingResult | None = None
    not_installed: list[str] = field(default_factory=list)

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
        if data["training"] is not None:
            training = data["training"]
            data["training"] = TrainingResult(**{**training, "step_times": _times(training["step_times"])})
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
