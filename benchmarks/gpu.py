"""LSTM and GRU on a GPU against torch.nn, with cuDNN and without: checks, times and writes JSON.

`python -m benchmarks.gpu` takes a grid of some minutes, `--full` or sizes of your own another one. After
`--limit` seconds no case is begun any more; what was measured until then is in the file, which is written anew after
each case.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console

from benchmarks.cases import GATES, MODE_TITLES, Mode
from benchmarks.chart import draw_chart
from benchmarks.checking import CheckError, check
from benchmarks.gpu_cases import PRECISIONS, GpuCase, default_grid, product_grid
from benchmarks.gpu_machine import CLOCKS, ask_nvidia_smi, clocks_under_load, describe_gpu, file_name
from benchmarks.gpu_peers import captured, gpu_problem, time_on_gpu
from benchmarks.gpu_report import group_of, print_gpu_run
from benchmarks.problem import FUSED, Problem
from benchmarks.report import make_console, make_progress
from benchmarks.results import Result, Run
from benchmarks.timing import Function

RESULTS = Path(__file__).parent / "results"
LIMIT_SECONDS = 300.0
SECONDS = 0.15  # for each case, pass, and way of calling; five rounds at least
# What is computed is checked over so many steps; more take the same kernels. How well it is rounded is for the tests to
# see, here only that it is the same: to 16 eps of the dtype, of float16 for tf32, which has its mantissa.
CHECKED_STEPS = 128
CLOCKS_EVERY = 20  # cases


@dataclass
class Gpu:
    """What the timing needs to know of the device; a test has another one."""

    name: str = "cuda"
    wait: Function = torch.cuda.synchronize
    capture: Callable[[Function], Function | None] = captured


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return 1 if a check failed, 2 without a GPU."""
    options = _parser().parse_args(arguments)
    console = make_console()
    if not torch.cuda.is_available():
        console.print("benchmarks.gpu needs an NVIDIA GPU, and a PyTorch that was built with CUDA.")
        return 2
    run = Run(describe_gpu())
    path = options.output / f"{file_name(run.machine)}.json"
    run_on_gpu(run, _grid(options), path, options.limit, console)
    run.machine["clocks after"] = ask_nvidia_smi(CLOCKS)
    run.save(path)
    print_gpu_run(console, run)
    console.print(f"written: {path}", soft_wrap=True)
    if run.results:
        draw_chart(run, path.with_suffix(".png"))
    return 1 if run.failures else 0


def run_on_gpu(
    run: Run, cases: list[GpuCase], path: Path, limit: float, console: Console, gpu: Gpu | None = None
) -> None:
    """Check and time cases one after another, and write the file after each.

    Args:
        run: Gets the results, and the cases that compute something else than the reference, which are not timed.
        cases: Those that matter most first.
        path: Of the JSON file.
        limit: After so many seconds no case is begun any more.
        console: Where the progress bar goes.
        gpu: Where it runs.
    """
    gpu = gpu or Gpu()
    end = perf_counter() + limit
    with make_progress(console) as progress:
        task = progress.add_task("", total=len(cases))
        for done, case in enumerate(cases):
            run.machine["cases"] = f"{done} of {len(cases)}"
            if perf_counter() > end:
                console.print(f"stopped after {limit:.0f} s: {run.machine['cases']} cases are done")
                return
            progress.update(task, description=f"{case.group} {case.label}")
            _measure(run, case, gpu, ask_clocks=done % CLOCKS_EVERY == 0)
            run.machine["cases"] = f"{done + 1} of {len(cases)}"
            run.save(path)
            progress.advance(task)


def _measure(run: Run, case: GpuCase, gpu: Gpu, ask_clocks: bool) -> None:
    """Check and time both passes; what fails is noted, and the run goes on."""
    for mode, title in MODE_TITLES.items():
        try:
            _check(case, mode, gpu)
            problem = gpu_problem(case, mode, gpu.name)
            for way, times in time_on_gpu(problem, mode, SECONDS, gpu.wait, gpu.capture).items():
                run.results.append(Result(group_of(case, way), case.label, mode, case.operations(mode), 0.0, times))
            if ask_clocks and mode == "training":
                _note_clocks(run, problem, gpu)
            del problem
        except CheckError as error:
            run.failures.append(str(error))
        except RuntimeError as error:  # such as too little memory
            run.failures.append(f"{case.group} {case.label}, {title}: {error}")
        gc.collect()


def _check(case: GpuCase, mode: Mode, gpu: Gpu) -> None:
    """Hold outputs and gradients of all peers against float64 over the first steps."""
    short = replace(case, time=min(case.time, CHECKED_STEPS))
    problem = gpu_problem(short, mode, gpu.name)
    check(replace(short, dtype="float16") if case.tf32 else short, problem, mode, rounding=False)


def _note_clocks(run: Run, problem: Problem, gpu: Gpu) -> None:
    call = next(peer for peer in problem.peers if peer.name == FUSED).prepare("training")
    clocks = clocks_under_load(call, gpu.wait)
    seen = [text for text in (str(run.machine.get("clocks under load", "")), clocks) if text]
    run.machine["clocks under load"] = "; ".join(seen)


def _grid(options: argparse.Namespace) -> list[GpuCase]:
    chosen = {
        "kinds": options.kind,
        "precisions": options.precision,
        "times": options.time,
        "batches": options.batch,
        "hidden_sizes": options.hidden,
    }
    chosen = {name: values for name, values in chosen.items() if values}
    return product_grid(**chosen) if chosen or options.full else default_grid()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="all combinations of all sizes: more than an hour, see --limit"
    )
    parser.add_argument("--kind", nargs="+", choices=list(GATES), help="these, and of what is not chosen everything")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS)
    parser.add_argument("--time", type=int, nargs="+", help="time steps")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--hidden", type=int, nargs="+", help="of the hidden state and of the input")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for the JSON (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
