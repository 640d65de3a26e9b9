"""One run over a grid: checks and times each case, then trains the examples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from rich.console import Console
from rich.progress import Progress, TaskID

from benchmarks.cases import MODE_TITLES, Case, Mode, RecurrentCase
from benchmarks.convolution_peers import convolution_problem
from benchmarks.machine import Peak, describe_machine, measure_peak
from benchmarks.problem import Problem, check
from benchmarks.recurrent_peers import ONNX_RUNTIME, onnx_is_installed, recurrent_problem
from benchmarks.report import make_progress
from benchmarks.resets import reset_problem
from benchmarks.results import Result, Run
from benchmarks.timing import time_peers
from benchmarks.training import make_pairs, train_pair

MODES: tuple[Mode, ...] = ("forward", "training")


def run_benchmarks(
    cases: Sequence[Case],
    sections: Collection[str],
    examples: Collection[str],
    console: Console,
    *,
    compiled: bool = False,
    seconds: float = 0.0,
    training_seconds: float = 0.0,
) -> Run:
    """Check and time the chosen cases, and train the chosen examples.

    Args:
        cases: The grid of cases.
        sections: The sections of the grid to run.
        examples: The examples to train with either choice of layers.
        console: The console for the progress bar.
        compiled: Whether torch.compile of the reference cell is a peer.
        seconds: About how long to time each case and mode; 0 only checks.
        training_seconds: How long to train each model, both choices of layers together; 0 only compares their first
            losses.

    Returns:
        The results.

    Raises:
        CheckError: A peer's result differs from the reference; the run ends there.
    """
    run = Run(describe_machine(), not_installed=[] if onnx_is_installed() else [ONNX_RUNTIME])
    chosen = [case for case in cases if case.section in sections]
    with make_progress(console) as progress:
        task = progress.add_task("limits of this machine", total=len(MODES) * len(chosen))
        peak = measure_peak() if seconds and chosen else Peak()
        for case in chosen:
            problem = _make_problem(case, compiled)
            for mode in MODES:
                progress.update(task, description=f"{case.group} {case.label} {MODE_TITLES[mode]}")
                check(case, problem, mode)
                if seconds:
                    run.results.append(_time(case, problem, mode, peak, seconds))
                if seconds and mode == "forward" and isinstance(case, RecurrentCase) and case.time == 1:
                    run.results.append(_time(case, problem, mode, peak, seconds, cold=True))
                progress.advance(task)
        for example in examples:
            for pair in make_pairs(example):
                task = progress.add_task(f"{example}: {pair.name}", total=100)
                run.training.append(train_pair(pair, training_seconds, partial(_show, progress, task)))
    run.peak_gflops = peak.gflops | {f"{dtype} product": rate for dtype, rate in peak.half_gflops.items()}
    run.read_gigabytes = {str(size): rate for size, rate in peak.gigabytes.items()}
    return run


def _show(progress: Progress, task: TaskID, done: float) -> None:
    progress.update(task, completed=int(100 * done))


def _make_problem(case: Case, compiled: bool) -> Problem:
    if isinstance(case, RecurrentCase) and case.resets is not None:
        return reset_problem(case)
    if isinstance(case, RecurrentCase):
        return recurrent_problem(case, compiled=compiled)
    return convolution_problem(case)


def _time(case: Case, problem: Problem, mode: Mode, peak: Peak, seconds: float, cold: bool = False) -> Result:
    times = time_peers(problem.peers, mode, seconds, cold=cold)
    group = f"{case.group}, cold caches" if cold else case.group
    return Result(group, case.label, mode, case.operations(mode), peak.limit_seconds(case, mode), times)
