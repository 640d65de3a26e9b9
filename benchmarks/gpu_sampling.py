"""Checks and times on a GPU how images are drawn pixel by pixel, and writes JSON; see `benchmarks.sampling`.

The peers are the loop over whole passes, with float32 and with tf32, and a cache in PyTorch. Of the loop one pass is
timed and multiplied by the number of pixels. `python -m benchmarks.gpu_sampling` takes about a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu import RESULTS
from benchmarks.machine import describe_gpu, gpu_name
from benchmarks.problem import FUSED, CheckError
from benchmarks.report import make_console, make_progress
from benchmarks.results import Result, Run
from benchmarks.sampling import NAIVE, SamplingCase, check, operations_of, time_ways, ways_to_draw
from benchmarks.timing import Function

SECONDS = 1.0  # for each case; at least five rounds are made
LIMIT_SECONDS = 120.0
WITH_TF32 = f"{NAIVE}, tf32"


def default_cases() -> list[SamplingCase]:
    """Both networks, and one image, a few and many."""
    networks = (("8 layers 7x7", 64), ("5 residual blocks", 128))
    return [SamplingCase(*network, batch) for batch in (256, 16, 1) for network in networks]


def with_precision(precision: str, function: Function) -> Function:
    """Return a function whose convolutions compute float32 with "ieee" precision or with "tf32"."""

    def call() -> object:
        backends: Any = torch.backends
        setting = backends.cudnn.conv
        before = setting.fp32_precision
        setting.fp32_precision = precision
        try:
            return function()
        finally:
            setting.fp32_precision = before

    return call


def measure(case: SamplingCase, run: Run, device: str, seconds: float, wait: Function) -> None:
    """Check and time a case; a failure is recorded, and the run goes on.

    Args:
        case: What to draw.
        run: The run to which the result is added.
        device: The device.
        seconds: About how long to time it.
        wait: Returns when the device has finished.
    """
    try:
        model = case.make_model().to(device)
        with_precision("ieee", lambda: check(case, model))()
        ways = ways_to_draw(case, model)
        ways[WITH_TF32] = with_precision("tf32", ways[NAIVE])
        ways[NAIVE] = with_precision("ieee", ways[NAIVE])
        times = time_ways(case, ways, seconds, wait)
        run.results.append(Result(case.group, case.label, "forward", operations_of(case, model), 0.0, times))
    except (CheckError, RuntimeError) as error:
        run.failures.append(f"{case.group}, {case.label}: {error}")


def run_on_gpu(
    cases: Sequence[SamplingCase], run: Run, path: Path, console: Console, limit: float = LIMIT_SECONDS,
    device: str = "cuda", seconds: float = SECONDS, wait: Function = torch.cuda.synchronize,
) -> None:  # fmt: skip
    """Check and time cases one after another, and write the file after each.

    Args:
        cases: The cases, the most important ones first.
        run: The run to which results and failures are added.
        path: The JSON file to write.
        console: The console for the progress bar.
        limit: The seconds after which no further case is started.
        device: The device.
        seconds: About how long to time each case.
        wait: Returns when the device has finished.
    """
    end = perf_counter() + limit
    with make_progress(console) as progress, torch.no_grad():
        task = progress.add_task("", total=len(cases))
        for case in cases:
            if perf_counter() > end:
                run.failures.append(f"stopped after {limit:.0f} s, before {case.group}, {case.label}")
                break
            progress.update(task, description=f"{case.group}, {case.label}")
            measure(case, run, device, seconds, wait)
            run.save(path)
            progress.advance(task)


def print_run(console: Console, run: Run) -> None:
    """Print a table for each network: our time for all images, and how many times as long each peer takes."""
    for (group, _), results in run.groups().items():
        table = Table(title=group)
        peers = [name for name in results[0].times if name != FUSED]
        for column in ("case", "ms", *peers):
            table.add_column(column)
        for result in results:
            ratios = [f"{result.ratios()[peer]:.1f}x" for peer in peers]
            table.add_row(result.label, f"{1e3 * result.fused.median:.2f}", *ratios)
        console.print(table)
    for failure in run.failures:
        console.print(f"[bold red]failed, not timed:[/] {failure}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if a check failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_sampling", description=__doc__)
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for the JSON (%(default)s)")
    options = parser.parse_args(arguments)
    console = make_console()
    if not torch.cuda.is_available():
        console.print("benchmarks.gpu_sampling needs an NVIDIA GPU, and a PyTorch that was built with CUDA.")
        return 2
    run = Run(describe_gpu())
    path = options.output / f"{gpu_name(run.machine)}-sampling.json"
    run_on_gpu(default_cases(), run, path, console, options.limit)
    print_run(console, run)
    console.print(f"written: {path}", soft_wrap=True)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
