"""Measures how the time grows with time steps, batch size, hidden size or threads, each with the others constant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from rich.console import Console

from benchmarks.cases import KINDS, MODE_TITLES, Kind, RecurrentCase
from benchmarks.machine import Peak, describe_machine, measure_peak
from benchmarks.problem import FUSED, Problem, check
from benchmarks.recurrent_peers import ONNX_RUNTIME, onnx_is_installed, recurrent_problem
from benchmarks.report import make_progress
from benchmarks.results import Result, Run
from benchmarks.timing import time_peers

Quantity = Literal["time", "batch", "hidden", "threads"]

TITLES: dict[Quantity, str] = {
    "time": "time steps",
    "batch": "batch size",
    "hidden": "hidden size",
    "threads": "threads",
}
PEERS = (FUSED, "torch.nn", ONNX_RUNTIME)  # without the loops over cells, which are far slower than the others


@dataclass(frozen=True)
class Sweep:
    """Cases in which one quantity grows while the others are constant; input_size is equal to hidden_size.

    Attributes:
        quantity: The quantity that grows.
        values: Its values, from small to large.
        time: The number of time steps, unless it grows.
        batch: The batch size, unless it grows.
        hidden: The hidden size, unless it grows.
    """

    quantity: Quantity
    values: tuple[int, ...]
    time: int = 50
    batch: int = 16
    hidden: int = 256

    @property
    def title(self) -> str:
        """The quantity that grows and the constant ones, such as `batch size (time 50, hidden 256)`."""
        constant = (f"{name} {size}" for name, size in self._sizes().items() if name != self.quantity)
        return f"{TITLES[self.quantity]} ({', '.join(constant)})"

    def group(self, kind: Kind) -> str:
        """The group of this sweep's results, whose labels are the values."""
        return f"{kind} by {self.title}"

    def case(self, kind: Kind, value: int) -> RecurrentCase:
        """The case at one value; the number of threads is not part of a case."""
        sizes = self._sizes()
        if self.quantity in sizes:
            sizes[self.quantity] = value
        return RecurrentCase(kind, sizes["time"], sizes["batch"], sizes["hidden"], sizes["hidden"])

    def threads(self, value: int) -> int:
        """The number of threads at one value."""
        return value if self.quantity == "threads" else torch.get_num_threads()

    def _sizes(self) -> dict[str, int]:
        return {"time": self.time, "batch": self.batch, "hidden": self.hidden}


def default_sweeps() -> list[Sweep]:
    """All four sweeps, which take about eight minutes on two cores."""
    return [
        Sweep("time", _doubled(512)),
        Sweep("batch", _doubled(256)),
        Sweep("hidden", _doubled(1024, first=32)),
        Sweep("threads", _doubled(_cores()), batch=32, hidden=512),
    ]


def run_scaling(sweeps: Sequence[Sweep], console: Console, seconds: float) -> Run:
    """Check and time every point of the sweeps, and then restore the number of threads.

    Args:
        sweeps: The sweeps.
        console: The console for the progress bar.
        seconds: About how long to time each point, kind and mode; 0 only checks.

    Returns:
        A result for each kind, value and mode. The run's limits are those of the usual number of threads.

    Raises:
        CheckError: A peer's result differs from the reference; the run ends there.
    """
    run = Run(describe_machine(), not_installed=[] if onnx_is_installed() else [ONNX_RUNTIME])
    threads = torch.get_num_threads()
    peaks: dict[int, Peak] = {}
    points = [(sweep, kind, value) for sweep in sweeps for kind in KINDS for value in sweep.values]
    with make_progress(console) as progress:
        task = progress.add_task("", total=len(points))
        try:
            for sweep, kind, value in points:
                progress.update(task, description=f"{sweep.group(kind)}: {value}")
                count = sweep.threads(value)
                torch.set_num_threads(count)
                if seconds and count not in peaks:
                    peaks[count] = measure_peak()
                run.results += _measure(sweep, kind, value, peaks.get(count, Peak()), seconds)
                torch.set_num_threads(threads)
                progress.advance(task)
        finally:
            torch.set_num_threads(threads)
    if threads in peaks:
        run.peak_gflops = peaks[threads].gflops
        run.read_gigabytes = {str(size): rate for size, rate in peaks[threads].gigabytes.items()}
    return run


def _measure(sweep: Sweep, kind: Kind, value: int, peak: Peak, seconds: float) -> list[Result]:
    """Check one point with the current number of threads and, if `seconds` is not 0, time both modes."""
    case = sweep.case(kind, value)
    problem = _without_loops(recurrent_problem(case))
    results = []
    for mode in MODE_TITLES:
        check(case, problem, mode)
        if seconds:
            limit = peak.limit_seconds(case, mode)
            times = time_peers(problem.peers, mode, seconds)
            results.append(Result(sweep.group(kind), str(value), mode, case.operations(mode), limit, times))
    return results


def _without_loops(problem: Problem) -> Problem:
    return replace(problem, peers=[peer for peer in problem.peers if peer.name in PEERS])


def _doubled(last: int, first: int = 1) -> tuple[int, ...]:
    """The numbers `first`, twice that, and so on below `last`, and then `last`."""
    powers = (first << index for index in range(last.bit_length()))
    return (*(power for power in powers if power < last), last)


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
