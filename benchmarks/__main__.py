"""The command line of the benchmarks.

`python -m benchmarks [--quick] [--only ...]` times every case against its peers. With a command, `train [EXAMPLE ...]`
trains the examples, `scaling` measures how the time grows with each size, `memory` measures the memory of a call,
`sample` times how a PixelCNN draws images, `resets` times layers whose states are replaced where episodes end, `frozen`
times single steps with frozen weights, and `table FILE` prints the tables of an earlier run.
`python -m benchmarks.gpu` is the command for a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cases import SECTIONS, full_grid, quick_grid
from benchmarks.chart import draw_chart, draw_scaling
from benchmarks.frozen import default_cases as frozen_cases
from benchmarks.frozen import run_frozen
from benchmarks.machine import machine_name
from benchmarks.memory import default_cases, run_memory
from benchmarks.problem import CheckError
from benchmarks.report import make_console, markdown_table, print_run
from benchmarks.resets import reset_grid
from benchmarks.results import Run
from benchmarks.runner import run_benchmarks
from benchmarks.sampling import default_cases as sampling_cases
from benchmarks.sampling import run_sampling
from benchmarks.scaling import default_sweeps, run_scaling
from examples import EXAMPLES

RESULTS = Path(__file__).parent / "results"
QUICK_SECONDS, FULL_SECONDS = 2.0, 4.0
TRAIN = "train"
TRAINING_SECONDS = 20.0  # for each model
QUICK_EXAMPLES = ("language_model",)
SCALING, MEMORY = "scaling", "memory"
SAMPLE = "sample"
RESETS = "resets"
FROZEN = "frozen"
FROZEN_SECONDS = 1.5  # for each layer, all peers together
RESETS_SECONDS = 4.0  # for each layer, fraction of resets and mode
SAMPLE_SECONDS = 20.0  # for each network and batch
SCALING_SECONDS = 1.5  # for each point, kind of layer and mode

# The results, the words of the result file's name, and the functions that draw charts, by the suffix of their file
# names.
Outcome = tuple[Run, list[str], Mapping[str, Callable[[Run, Path], None]]]

# With these settings malloc keeps freed memory for the next output. Otherwise each large output would get new pages,
# and the operating system takes longer to clear these than many layers take to compute.
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The command line's arguments, or None for those of the process.

    Returns:
        The exit code: 0, 1 if a check failed, 130 after Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "table":
        if not options.results.is_file():
            parser.error(f"there is no file {options.results}")
        print(markdown_table(Run.load(options.results)), end="")
        return 0
    if options.command == TRAIN and not set(options.examples) <= set(EXAMPLES):
        parser.error(f"EXAMPLE must be one of {', '.join(EXAMPLES)}")
    if options.command == MEMORY and options.check_only:
        parser.error("memory does nothing that --check-only would leave")
    if options.threads is not None:
        if options.threads < 1:
            parser.error("--threads must be 1 or more")
        torch.set_num_threads(options.threads)
    console = make_console()
    try:
        run, kind, charts = _ACTIONS[options.command](options, console)
    except CheckError as error:
        console.print(f"[bold red]check failed:[/] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; nothing was written")
        return 130
    if options.check_only:
        console.print("all checks passed")
        return 0
    print_run(console, run)
    path = options.output / f"{'-'.join([machine_name(run.machine), *kind])}.json"
    run.save(path)
    written = [path]
    for ending, draw in charts.items():
        written.append(path.with_name(f"{path.stem}{ending}.png"))
        draw(run, written[-1])
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    return 0


def _bench(options: argparse.Namespace, console: Console) -> Outcome:
    """Measure every case of the grid, and the examples."""
    sections = options.only or (*SECTIONS, TRAIN)
    run = run_benchmarks(
        quick_grid() if options.quick else full_grid(),
        sections,
        () if TRAIN not in sections else QUICK_EXAMPLES if options.quick else EXAMPLES,
        console,
        compiled=not options.quick and not options.without_compile,
        seconds=0.0 if options.check_only else QUICK_SECONDS if options.quick else FULL_SECONDS,
        training_seconds=0.0 if options.check_only else TRAINING_SECONDS,
    )
    kind = [*(["quick"] if options.quick else []), *(options.only or [])]
    return run, kind, {"": draw_chart} if run.results else {}


def _train(options: argparse.Namespace, console: Console) -> Outcome:
    """Train the examples and nothing else."""
    seconds = 0.0 if options.check_only else options.seconds
    run = run_benchmarks([], (), options.examples or EXAMPLES, console, training_seconds=seconds)
    return run, [TRAIN, *options.examples], {}


def _scale(options: argparse.Namespace, console: Console) -> Outcome:
    """Measure how the time grows with each size."""
    sweeps = default_sweeps()
    run = run_scaling(sweeps, console, 0.0 if options.check_only else options.seconds)
    return run, [SCALING], {f"-{sweep.quantity}": partial(draw_scaling, sweep) for sweep in sweeps}


def _measure_memory(options: argparse.Namespace, console: Console) -> Outcome:
    """Measure the peak memory of one call."""
    return run_memory(default_cases(), console), [MEMORY], {}


def _sample(options: argparse.Namespace, console: Console) -> Outcome:
    """Time how images are drawn."""
    run = run_sampling(sampling_cases(), console, 0.0 if options.check_only else options.seconds)
    return run, [SAMPLE], {"": draw_chart}


def _reset(options: argparse.Namespace, console: Console) -> Outcome:
    """Time layers with resets."""
    seconds = 0.0 if options.check_only else options.seconds
    run = run_benchmarks(reset_grid(), (RESETS,), (), console, seconds=seconds)
    return run, [RESETS], {"": draw_chart}


def _freeze(options: argparse.Namespace, console: Console) -> Outcome:
    """Time single steps with frozen weights."""
    run = run_frozen(frozen_cases(), console, 0.0 if options.check_only else options.seconds)
    return run, [FROZEN], {"": draw_chart}


_ACTIONS = {
    None: _bench,
    TRAIN: _train,
    SCALING: _scale,
    MEMORY: _measure_memory,
    SAMPLE: _sample,
    RESETS: _reset,
    FROZEN: _freeze,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Check every case against the reference, in float32 and in half precision, time fused_rnn against "
        "its peers, and train the examples with either choice of layers.",
    )
    parser.add_argument("--quick", action="store_true", help="a small grid and a short training, five minutes")
    parser.add_argument(
        "--without-compile",
        action="store_true",
        help="leave torch.compile of the reference cells out of the full grid: it takes minutes for long sequences",
    )
    parser.add_argument("--check-only", action="store_true", help="check every case and time none")
    parser.add_argument(
        "--only", nargs="+", choices=(*SECTIONS, TRAIN), metavar="SECTION", help=", ".join((*SECTIONS, TRAIN))
    )
    parser.add_argument("--threads", type=int, help="threads of every peer (default: torch's)")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder of the JSON file and the charts (%(default)s)"
    )
    commands = parser.add_subparsers(dest="command", title="instead of a run")
    train = commands.add_parser(TRAIN, help="train the examples with fused_rnn's layers and with torch.nn's by turns")
    train.add_argument("examples", nargs="*", metavar="EXAMPLE", help=f"all, or some of {', '.join(EXAMPLES)}")
    train.add_argument(
        "--seconds", type=float, default=TRAINING_SECONDS, help="for each model, both trainings together (%(default)s)"
    )
    scaling = commands.add_parser(
        SCALING, help="how the time grows with time steps, batch, hidden size and threads (about eight minutes)"
    )
    scaling.add_argument(
        "--seconds", type=float, default=SCALING_SECONDS, help="for each point, kind of layer and mode (%(default)s)"
    )
    memory = commands.add_parser(MEMORY, help="what inference and training take at their peak, ours and torch.nn's")
    sample = commands.add_parser(SAMPLE, help="draw images pixel by pixel: ours, whole passes, and a cache in PyTorch")
    sample.add_argument(
        "--seconds", type=float, default=SAMPLE_SECONDS, help="for each network and batch (%(default)s)"
    )
    resets = commands.add_parser(
        RESETS,
        help="states replaced where episodes end: ours, a loop over torch.nn's cell, and torch.nn's layer padded",
    )
    resets.add_argument(
        "--seconds", type=float, default=RESETS_SECONDS, help="for each layer, fraction and mode (%(default)s)"
    )
    frozen = commands.add_parser(
        FROZEN, help="single steps with frozen weights: ours, torch.nn's and ONNX Runtime's, in float32 and in int8"
    )
    frozen.add_argument(
        "--seconds", type=float, default=FROZEN_SECONDS, help="for each layer, all peers together (%(default)s)"
    )
    for command in (scaling, memory, sample, resets, frozen):
        command.add_argument("--output", type=Path, default=argparse.SUPPRESS, help="as above")
    table = commands.add_parser("table", help="print a Markdown table of a JSON file")
    table.add_argument("results", type=Path, help="the JSON file")
    return parser


def _fix_allocator() -> None:
    """Restart the process with the allocator's settings, which malloc reads only at the start of a process."""
    if sys.platform == "linux" and not ALLOCATOR_SETTINGS.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR_SETTINGS})


if __name__ == "__main__":
    _fix_allocator()
    sys.exit(main())
