"""What a run on a GPU shows: microseconds a step, and what others have published beside it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.cases import MODE_TITLES
from benchmarks.gpu_cases import PUBLISHED_SHAPE, GpuCase
from benchmarks.problem import FUSED
from benchmarks.report import ratio_text
from benchmarks.results import Result, Run, summarise
from benchmarks.timing import Measurement

# Milliseconds of an LSTM at PUBLISHED_SHAPE on an H100, forward and forward + backward, as the authors of FlashRNN
# published them; nothing of it was measured here.
PUBLISHED = {
    "cuDNN float16": (2.01, 5.19),
    "FlashRNN fused": (4.87, 13.6),
    "FlashRNN, cuBLAS and a pointwise kernel a step": (10.8, 26.5),
    "haste float32": (18.4, 43.9),
    "eager Python": (147.0, 484.0),
}


def steps_of(label: str) -> int:
    """The time steps of a result, which is the first number of its label."""
    return int(label.strip("(").split(",")[0])


def print_gpu_run(console: Console, run: Run) -> None:
    """Print every group, the published figures and what went wrong."""
    console.print("[bold]machine[/]  " + ", ".join(f"{name} {value}" for name, value in run.machine.items()))
    for (group, mode), results in run.groups().items():
        console.print(_table(f"{group}, {MODE_TITLES[mode]}", results))
    console.print(
        "(time, batch, hidden). Each cell: microseconds a step, median of interleaved rounds ±distance of the "
        "quartiles, and for a peer first its time over that of fused.\ngraphs: replayed CUDA graphs, the GPU's time; "
        "calls: one call after the other, where a slow host may be what is measured."
    )
    console.print(_published(run))
    for failure in run.failures:
        console.print(f"[bold red]check failed, not timed:[/] {failure}")


def group_of(case: GpuCase, way: str) -> str:
    """The group of a case's results for one way of calling."""
    return f"{case.group}, {way}"


def _table(title: str, results: list[Result]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("case")
    summaries = summarise(results)
    for column in (FUSED, *summaries):
        table.add_column(column, justify="right")
    for result in results:
        ratios, steps = result.ratios(), steps_of(result.label)
        cells = [
            f"{ratio_text(ratios[peer])}  {_step(result.times[peer], steps)}" if peer in ratios else ""
            for peer in summaries
        ]
        table.add_row(result.label, _step(result.fused, steps), *cells)
    if len(results) > 1:
        table.add_section()
        table.add_row("geometric mean", "", *(ratio_text(summary.mean) for summary in summaries.values()))
        table.add_row("worst", "", *(f"{ratio_text(s.worst)}  {s.worst_label}" for s in summaries.values()))
    return table


def _step(time: Measurement, steps: int) -> str:
    """Such as `2.25 us ±1%`."""
    return f"{1e6 * time.median / steps:.2f} us ±{time.spread / time.median:.0%}"


def _published(run: Run) -> Table:
    """Milliseconds at the published shape: ours and our peers' as measured here, then the figures from elsewhere."""
    shape = ", ".join(map(str, PUBLISHED_SHAPE))
    table = Table(title=f"LSTM at ({shape}), ms", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in ("", *MODE_TITLES.values(), "from"):
        table.add_column(column)
    measured: dict[str, dict[str, str]] = {}
    for result in _at_shape(run.results, f"({shape})"):
        for peer, time in result.times.items():
            row = measured.setdefault(f"{peer}, {result.group}", {})
            row[result.mode] = f"{1e3 * time.median:.2f}"
    for name, times in measured.items():
        table.add_row(name, *(times.get(mode, "") for mode in MODE_TITLES), f"here, {run.machine['processor']}")
    for name, values in PUBLISHED.items():
        table.add_row(name, *map(str, values), "[yellow]elsewhere: published by FlashRNN, H100[/]")
    return table


def _at_shape(results: Iterable[Result], label: str) -> list[Result]:
    return [result for result in results if result.label == label and result.group.startswith("LSTM")]
