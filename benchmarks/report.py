"""What a run shows on the terminal: a progress bar while it lasts, then a table for every group."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.cases import MODE_TITLES
from benchmarks.problem import FUSED
from benchmarks.results import OURS, THEIRS, MemoryResult, Result, Run, Summary, TrainingResult, summarise
from benchmarks.timing import Measurement
from examples.common import format_numbers

WIDTH_WITHOUT_TERMINAL = 170


def make_console() -> Console:
    """The terminal, or wide lines where the output goes to a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)


def make_progress(console: Console) -> Progress:
    """The bar: what is running, how much is done, for how long already."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def print_run(console: Console, run: Run) -> None:
    """Print machine, limits, all tables, the training jobs and the memory."""
    machine = ", ".join(f"{name} {value}" for name, value in run.machine.items())
    console.print(f"[bold]machine[/]  {machine}", soft_wrap=True)
    if run.peak_gflops:
        peaks = ", ".join(f"{name} {rate:.0f}" for name, rate in run.peak_gflops.items())
        console.print(f"[bold]limits[/]   GFLOP/s of a large {peaks}")
    for name in run.not_installed:
        console.print(f"[yellow]{name} is not installed: its columns are missing (pip install '.\\[bench]')[/]")
    for (group, mode), results in run.groups().items():
        console.print(_table(f"{group}, {MODE_TITLES[mode]}", results))
    if run.results:
        console.print(
            "Each cell: median of interleaved rounds ±distance of the quartiles, and for a peer first its time over "
            "that of fused.\nlimit: share of what the best large product, convolution or read on this machine allows."
        )
    if run.training:
        _print_training(console, run.training)
    if run.memory:
        _print_memory(console, run.memory)


def _table(title: str, results: list[Result]) -> Table:
    """One row a case, one column a peer, and the group's geometric mean and worst ratio below."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("case")
    summaries = summarise(results)
    for column in (FUSED, "GFLOP/s", "limit", *summaries):
        table.add_column(column, justify="right")
    for result in results:
        ratios = result.ratios()
        cells = [
            f"{ratio_text(ratios[peer])}  {_time(result.times[peer])}" if peer in ratios else "" for peer in summaries
        ]
        table.add_row(result.label, _time(result.fused), f"{result.gflops:.1f}", f"{result.share:.0%}", *cells)
    if len(results) > 1:
        table.add_section()
        table.add_row("geometric mean", "", "", "", *(ratio_text(summary.mean) for summary in summaries.values()))
        table.add_row("worst", "", "", "", *(_worst(summary) for summary in summaries.values()))
    return table


def _worst(summary: Summary) -> str:
    losses = f"  slower in {summary.lost} of {summary.cases}" if summary.lost else ""
    return ratio_text(summary.worst) + losses


def ratio_text(ratio: float) -> str:
    """Such as `1.25x`, green where ours is faster."""
    return f"[{'green' if ratio >= 1 else 'red'}]{ratio:.2f}x[/]"


def _time(time: Measurement) -> str:
    """Such as `12.3 ms ±4%`."""
    factor, unit = (1e3, "ms") if time.median >= 1e-3 else (1e6, "us")
    return f"{time.median * factor:.3g} {unit} ±{time.spread / time.median:.0%}"


def _print_training(console: Console, training: list[TrainingResult]) -> None:
    """Print the training jobs, both choices of layers side by side, and how far their losses agree."""
    table = Table(title="training the examples", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("")
    for column in ("one step: fused_rnn", "torch.nn", "an epoch", "torch.nn", "a second", "torch.nn"):
        table.add_column(column, justify="right")
    table.add_column("losses differ by", justify="right")
    table.add_column("held out, after these steps")
    for result in training:
        ours, theirs = result.step_times[OURS], result.step_times[THEIRS]
        cells = [_time(ours), f"{ratio_text(result.ratio)}  {_time(theirs)}"]
        cells += [f"{result.epoch_seconds(layers):.3g} s" for layers in (OURS, THEIRS)]
        cells += [f"{result.units_per_second(OURS):,.0f} {result.unit}", f"{result.units_per_second(THEIRS):,.0f}"]
        scores = " / ".join(format_numbers(result.scores[layers]) for layers in (OURS, THEIRS))
        table.add_row(result.title, *cells, f"{result.difference:.1e}", f"{scores} ({result.steps})")
    console.print(table)
    first = training[0]
    console.print(
        f"Steps by turns from the same seed. Over the first {first.compared_steps} steps the losses may differ by "
        f"{first.tolerance:.0e} of their value."
    )


def _print_memory(console: Console, memory: list[MemoryResult]) -> None:
    """Print what a call takes: ours, and each peer with its ratio to ours."""
    table = Table(title="memory of one call", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("case")
    table.add_column("")
    peers = list(memory[0].bytes_taken)
    for peer in peers:
        table.add_column(peer, justify="right")
    for result in memory:
        taken = {peer: f"{1e-6 * size:.1f} MB" for peer, size in result.bytes_taken.items()}
        cells = [taken[FUSED], *(f"{ratio_text(ratio)}  {taken[peer]}" for peer, ratio in result.ratios().items())]
        table.add_row(f"{result.group} {result.label}", MODE_TITLES[result.mode], *cells)
    console.print(table)
    console.print(
        "What a call adds to the resident memory at its peak, its outputs and gradients included, the weights and the "
        "input not."
    )
