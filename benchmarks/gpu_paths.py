"""Times every path that a recurrent layer can take on a GPU, as CUDA graphs, and writes a CSV.

`python -m benchmarks.gpu_paths` times layers of many sizes, the ones that matter most first, until `--limit` seconds
have passed. The choice of the path is fitted to such a file: see tests/cuda_on_host/fit.py.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from benchmarks.cases import GpuCase, Kind, Mode, Precision, gpu_product_grid
from benchmarks.gpu import CUDNN, LIMIT_SECONDS, RESULTS, Gpu, gpu_problem
from benchmarks.machine import describe_gpu, gpu_name
from benchmarks.problem import FUSED
from benchmarks.report import make_console, make_progress
from benchmarks.timing import Function, Measurement, time_together
from fused_rnn import _C

COLUMNS = ["kind", "dtype", "time", "batch", "hidden", "pass", "path", "plan_forward", "plan_backward", "us_per_step"]
TIME = 64
SECONDS = 0.05  # for each case and mode; at least five rounds are made
PASSES: dict[str, Mode] = {"forward": "forward", "both": "training"}
"""What the file calls the modes: forward alone, and forward and backward together."""


@dataclass(frozen=True)
class Way:
    """What restricts the choice of the plan."""

    name: str
    split: int = 0

    @property
    def label(self) -> str:
        """The name, which tells it from all other ways."""
        return f"{self.name} {self.split}" if self.split else self.name

    def __enter__(self) -> None:
        _C.set_plan_override(self.name, split=self.split)

    def __exit__(self, *_: object) -> None:
        _C.set_plan_override("any")

    def plan(self, case: GpuCase, backward: bool) -> str:
        """Return the plan of a pass in a few words."""
        with self:
            plan: dict[str, Any] = _C.cuda_plan(
                cell=case.kind.lower(), element_bytes=4 if case.dtype == "float32" else 2, batch=case.batch,
                hidden_size=case.hidden_size, directions=case.directions, backward=backward, projected=False,
                time=case.time,
            )  # fmt: skip
        if plan["path"] == "stepwise":
            return "stepwise"
        blocks = f"{plan['path']} {plan['groups']}x{plan['blocks']}x{plan['units']}"
        return f"{blocks} split{plan['split']}" if plan["split"] else f"{blocks} bt{plan['batch_tiles']}"


WAYS = [Way("any"), Way("stepwise"), Way("grid"), Way("cluster"), *(Way("warpgroup", split) for split in (1, 2, 4))]


def ways_of(case: GpuCase, plan_of: Callable[[Way, bool], str]) -> Iterator[tuple[Way, str, str]]:
    """Yield the ways that differ from those before, with their plans forward and backward."""
    seen: set[tuple[str, str]] = set()
    for way in WAYS:
        plans = (plan_of(way, False), plan_of(way, True))
        if way.name == "any" or plans not in seen:
            yield way, *plans
        seen.add(plans)


def time_paths(case: GpuCase, mode: Mode, ways: list[Way], gpu: Gpu) -> dict[str, Measurement]:
    """Return the time of a call as a graph, for cuDNN and for each way that can be captured, by its label."""
    problem = gpu_problem(case, mode, gpu.name)
    calls = {peer.name: peer.prepare(mode) for peer in problem.peers}
    graphs: dict[str, Function | None] = {CUDNN: gpu.capture(calls[CUDNN])}
    for way in ways:
        with way:
            graphs[way.label] = gpu.capture(calls[FUSED])
    taken = {name: graph for name, graph in graphs.items() if graph is not None}
    return {name: Measurement.of(times) for name, times in time_together(taken, SECONDS, gpu.wait).items()}


def cases(kinds: tuple[Kind, ...] = ("LSTM", "GRU")) -> list[GpuCase]:
    """Return layers in the order of their interest: large batches and hidden sizes in half precision first."""
    precisions: tuple[Precision, ...] = ("bfloat16", "tf32")
    ordered: list[GpuCase] = []
    for precision in precisions:
        sizes = (1024, 768, 512, 1536, 384, 640, 1280, 2048) if precision == "bfloat16" else (512, 256, 1024)
        for batch in (128, 64, 256, 32, 16):
            for hidden_size in sizes:
                ordered += gpu_product_grid(kinds, [precision], [TIME], [batch], [hidden_size])
    return ordered


def run_paths(
    path: Path,
    chosen: list[GpuCase],
    limit: float,
    console: Console,
    gpu: Gpu | None = None,
    plan_of: Callable[[GpuCase, Way, bool], str] = lambda case, way, backward: way.plan(case, backward),
) -> None:
    """Time cases one after another, and write each into the file before the next one is started.

    Args:
        path: The CSV file to write.
        chosen: The cases, the most important ones first.
        limit: The seconds after which no further case is started.
        console: The console for the progress bar.
        gpu: The device.
        plan_of: Returns the plan of a pass in a few words.
    """
    gpu, end = gpu or Gpu(), perf_counter() + limit
    with path.open("w", newline="", buffering=1) as file, make_progress(console) as progress:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        task = progress.add_task("", total=len(chosen))
        for case in chosen:
            if perf_counter() > end:
                console.print(f"stopped after {limit:.0f} s")
                return
            progress.update(task, description=f"{case.group} {case.label}")
            ways = list(ways_of(case, lambda way, backward, case=case: plan_of(case, way, backward)))  # type: ignore[misc]
            start = [case.kind, case.dtype, case.time, case.batch, case.hidden_size]
            for name, mode in PASSES.items():
                times = time_paths(case, mode, [way for way, *_ in ways], gpu)
                for way, forward, backward in [(Way(CUDNN), "", ""), *ways]:
                    if way.label in times:
                        microseconds = times[way.label].median * 1e6 / case.time
                        rows.writerow([*start, name, way.name, forward, backward, f"{microseconds:.2f}"])
            progress.advance(task)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_paths", description=__doc__)
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for the CSV (%(default)s)")
    options = parser.parse_args(arguments)
    console = make_console()
    if not torch.cuda.is_available():
        console.print("benchmarks.gpu_paths needs an NVIDIA GPU, and a PyTorch that was built with CUDA.")
        return 2
    path = options.output / f"{gpu_name(describe_gpu())}-paths.csv"
    run_paths(path, cases(), options.limit, console)
    console.print(f"written: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
