"""The output of a run: tables on the terminal for a CPU and for a GPU, tables in Markdown, and the progress bar."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.cases import MODE_TITLES, PUBLISHED_SHAPE, ConvolutionCase, Mode
from benchmarks.problem import FUSED
from benchmarks.results import OURS, THEIRS, MemoryResult, Result, Run, Summary, TrainingResult, summarise
from benchmarks.timing import Measurement
from examples.common import format_numbers

Groups = dict[tuple[str, Mode], list[Result]]

WIDTH_WITHOUT_TERMINAL = 170
# Milliseconds of an LSTM at PUBLISHED_SHAPE on an H100, forward and forward + backward, as published by the authors of
# FlashRNN; none of these was measured by us.
PUBLISHED = {
    "cuDNN float16": (2.01, 5.19),
    "FlashRNN fused": (4.87, 13.6),
    "FlashRNN, cuBLAS and a pointwise kernel a step": (10.8, 26.5),
    "haste float32": (18.4, 43.9),
    "eager Python": (147.0, 484.0),
}


def make_console() -> Console:
    """Return a console for the terminal, or one with wide lines if the output goes to a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)


def make_progress(console: Console) -> Progress:
    """Return a progress bar that shows the current case, how many are done, and the elapsed time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _new_table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)


def _ratio(ratio: float) -> str:
    """Format a ratio, such as `1.25x`, in green if ours is faster."""
    return f"[{'green' if ratio >= 1 else 'red'}]{ratio:.2f}x[/]"


# Runs on a CPU.


def print_run(console: Console, run: Run) -> None:
    """Print the machine, its limits, all tables, the trainings and the memory."""
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
    """A table with a row per case and a column per peer, and the group's geometric mean and worst ratio below."""
    table = _new_table(title)
    table.add_column("case")
    summaries = summarise(results)
    for column in (FUSED, "GFLOP/s", "limit", *summaries):
        table.add_column(column, justify="right")
    for result in results:
        ratios = result.ratios()
        cells = [f"{_ratio(ratios[peer])}  {_time(result.times[peer])}" if peer in ratios else "" for peer in summaries]
        table.add_row(result.label, _time(result.fused), f"{result.gflops:.1f}", f"{result.share:.0%}", *cells)
    if len(results) > 1:
        table.add_section()
        table.add_row("geometric mean", "", "", "", *(_ratio(summary.mean) for summary in summaries.values()))
        table.add_row("worst", "", "", "", *(_worst(summary) for summary in summaries.values()))
    return table


def _worst(summary: Summary) -> str:
    losses = f"  slower in {summary.lost} of {summary.cases}" if summary.lost else ""
    return _ratio(summary.worst) + losses


def _time(time: Measurement) -> str:
    """Format a time and its spread, such as `12.3 ms ±4%`."""
    factor, unit = (1e3, "ms") if time.median >= 1e-3 else (1e6, "us")
    return f"{time.median * factor:.3g} {unit} ±{time.spread / time.median:.0%}"


def _print_training(console: Console, training: list[TrainingResult]) -> None:
    """Print the trainings with either choice of layers side by side, and how much their losses differ."""
    table = _new_table("training the examples")
    table.add_column("")
    for column in ("one step: fused_rnn", "torch.nn", "an epoch", "torch.nn", "a second", "torch.nn"):
        table.add_column(column, justify="right")
    table.add_column("losses differ by", justify="right")
    table.add_column("held out, after these steps")
    for result in training:
        ours, theirs = result.step_times[OURS], result.step_times[THEIRS]
        cells = [_time(ours), f"{_ratio(result.ratio)}  {_time(theirs)}"]
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
    """Print the memory of a call: ours, and each peer's with its ratio to ours."""
    table = _new_table("memory of one call")
    table.add_column("case")
    table.add_column("")
    peers = list(memory[0].bytes_taken)
    for peer in peers:
        table.add_column(peer, justify="right")
    for result in memory:
        taken = {peer: f"{1e-6 * size:.1f} MB" for peer, size in result.bytes_taken.items()}
        cells = [taken[FUSED], *(f"{_ratio(ratio)}  {taken[peer]}" for peer, ratio in result.ratios().items())]
        table.add_row(f"{result.group} {result.label}", MODE_TITLES[result.mode], *cells)
    console.print(table)
    console.print(
        "What a call adds to the resident memory at its peak, its outputs and gradients included, the weights and the "
        "input not."
    )


# Runs on a GPU.


def _steps_of(label: str) -> int:
    """The time steps of a result, which is the first number of its label."""
    return int(label.strip("(").split(",")[0])


def print_gpu_run(console: Console, run: Run) -> None:
    """Print every group, the published times, and the cases that failed."""
    console.print("[bold]machine[/]  " + ", ".join(f"{name} {value}" for name, value in run.machine.items()))
    for (group, mode), results in run.groups().items():
        console.print(_gpu_table(f"{group}, {MODE_TITLES[mode]}", results))
    console.print(
        "(time, batch, hidden). Each cell: microseconds a step, median of interleaved rounds ±distance of the "
        "quartiles, and for a peer first its time over that of fused.\ngraphs: replayed CUDA graphs, the GPU's time; "
        "calls: one call after the other, where a slow host may be what is measured."
    )
    console.print(_published(run))
    for failure in run.failures:
        console.print(f"[bold red]check failed, not timed:[/] {failure}")


def _gpu_table(title: str, results: list[Result]) -> Table:
    table = _new_table(title)
    table.add_column("case")
    summaries = summarise(results)
    for column in (FUSED, *summaries):
        table.add_column(column, justify="right")
    for result in results:
        ratios, steps = result.ratios(), _steps_of(result.label)
        cells = [
            f"{_ratio(ratios[peer])}  {_step(result.times[peer], steps)}" if peer in ratios else ""
            for peer in summaries
        ]
        table.add_row(result.label, _step(result.fused, steps), *cells)
    if len(results) > 1:
        table.add_section()
        table.add_row("geometric mean", "", *(_ratio(summary.mean) for summary in summaries.values()))
        table.add_row("worst", "", *(f"{_ratio(s.worst)}  {s.worst_label}" for s in summaries.values()))
    return table


def _step(time: Measurement, steps: int) -> str:
    """Format the time of one step and its spread, such as `2.25 us ±1%`."""
    return f"{1e6 * time.median / steps:.2f} us ±{time.spread / time.median:.0%}"


def _published(run: Run) -> Table:
    """A table of milliseconds at the published shape: the measured times of all peers, then the published times."""
    shape = ", ".join(map(str, PUBLISHED_SHAPE))
    table = _new_table(f"LSTM at ({shape}), ms")
    for column in ("", *MODE_TITLES.values(), "from"):
        table.add_column(column)
    measured: dict[str, dict[str, str]] = {}
    for result in run.results:
        if result.label != f"({shape})" or not result.group.startswith("LSTM"):
            continue
        for peer, time in result.times.items():
            row = measured.setdefault(f"{peer}, {result.group}", {})
            row[result.mode] = f"{1e3 * time.median:.2f}"
    for name, times in measured.items():
        table.add_row(name, *(times.get(mode, "") for mode in MODE_TITLES), f"here, {run.machine['processor']}")
    for name, values in PUBLISHED.items():
        table.add_row(name, *map(str, values), "[yellow]elsewhere: published by FlashRNN, H100[/]")
    return table


# Markdown.


def markdown_table(run: Run) -> str:
    """Write Markdown tables of the recurrent layers, the convolution and the trainings, and how to read them.

    Args:
        run: The results.

    Returns:
        The text. Rows are groups, columns are peers, cells are the geometric mean of the ratios and the worst ratio.
    """
    groups = run.groups()
    convolution = {key: results for key, results in groups.items() if key[0] == ConvolutionCase.group}
    recurrent = {key: results for key, results in groups.items() if key not in convolution}
    parts = [_markdown_groups(part) for part in (recurrent, convolution) if part]
    machine = run.machine
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'} on {machine['cores']} cores"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "fused_rnn"))
    parts.append(
        "How many times as long as fused_rnn each peer takes: geometric mean over the cases, in brackets the worst "
        f"case, bold where fused_rnn is slower. {machine['processor']}, {machine['instruction_set']}, {threads}, "
        f"{versions} ({machine['commit']}), {str(machine['date'])[:10]}.\n"
    )
    if run.training:
        parts.append(_markdown_training(run.training))
    return "\n".join(parts)


def _markdown_groups(groups: Groups) -> str:
    summaries = {key: summarise(results) for key, results in groups.items()}
    peers = list(dict.fromkeys(peer for summary in summaries.values() for peer in summary))
    lines = [["", *peers], ["---"] * (1 + len(peers))]
    for (group, mode), summary in summaries.items():
        cells = [_cell(summary[peer]) if peer in summary else "" for peer in peers]
        lines.append([f"{group} {MODE_TITLES[mode]}", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_training(training: list[TrainingResult]) -> str:
    lines = [["trained", "an epoch with torch.nn", "with fused_rnn", "", "a second with torch.nn", "with fused_rnn"]]
    lines.append(["---"] * len(lines[0]))
    for result in training:
        epochs = [f"{result.epoch_seconds(layers):.3g} s" for layers in (THEIRS, OURS)]
        speeds = [f"{result.units_per_second(layers):,.0f} {result.unit}" for layers in (THEIRS, OURS)]
        ratio = f"{result.ratio:.2f}x" if result.ratio >= 1 else f"**{result.ratio:.2f}x**"
        lines.append([result.title, *epochs, ratio, *speeds])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(summary: Summary) -> str:
    worst = f"**{summary.worst:.2f}x**" if summary.lost else f"{summary.worst:.2f}x"
    return f"{summary.mean:.2f}x ({worst})" if summary.cases > 1 else worst
