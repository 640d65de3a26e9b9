"""The scaling charts: for each quantity four panels, kind by mode, of time over the quantity, and the limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.cases import GATES, MODE_TITLES
from benchmarks.chart import COLOURS
from benchmarks.results import Result, Run
from benchmarks.scaling import PEERS, TITLES, Sweep

PANEL_SIZE = (5.5, 3.6)  # inches
LIMIT_STYLE: dict[str, Any] = {"color": "0.4", "linestyle": "--", "linewidth": 1.2}
PEER_COLOURS = dict(zip(PEERS, COLOURS, strict=False))


def draw_scaling(sweep: Sweep, run: Run, path: Path) -> None:
    """Draw LSTM above GRU, forward on the left and forward + backward on the right, both axes logarithmic.

    Args:
        sweep: Which part of the run to draw.
        run: What was measured.
        path: The PNG file to write.
    """
    width, height = PANEL_SIZE
    figure = Figure(figsize=(width * len(MODE_TITLES), 1.0 + height * len(GATES)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(GATES), len(MODE_TITLES), sharex=True, squeeze=False)
    groups = run.groups()
    for row, kind in zip(panels, GATES, strict=True):
        for panel, (mode, title) in zip(row, MODE_TITLES.items(), strict=True):
            _draw_panel(panel, groups[sweep.group(kind), mode])
            panel.set_title(f"{kind}, {title}")
    for panel in panels[-1]:
        panel.set_xlabel(TITLES[sweep.quantity])
        panel.set_xticks(sweep.values, [str(value) for value in sweep.values])
        panel.xaxis.set_minor_locator(NullLocator())
    for row in panels:
        row[0].set_ylabel("one call")
    machine = run.machine
    threads = "" if sweep.quantity == "threads" else f"threads: {machine['threads']}, "
    figure.suptitle(
        f"Time of one call by {sweep.title}\n"
        f"{machine['processor']}, {threads}torch {machine['torch']}, {str(machine['date'])[:10]}"
    )
    peers = dict.fromkeys(peer for (group, _), results in groups.items() for peer in results[0].times)
    handles = [Line2D([], [], color=PEER_COLOURS[peer], marker="o", markersize=4, label=peer) for peer in peers]
    handles.append(Line2D([], [], label="limit of this machine", **LIMIT_STYLE))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_panel(panel: Axes, results: Sequence[Result]) -> None:
    values = [int(result.label) for result in results]
    for peer in results[0].times:
        medians = [result.times[peer].median for result in results]
        panel.plot(values, medians, color=PEER_COLOURS[peer], marker="o", markersize=4)
    panel.plot(values, [result.limit_seconds for result in results], **LIMIT_STYLE)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(_format_seconds))
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _format_seconds(seconds: float, _: int) -> str:
    """Such as `10 ms`."""
    factor, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * factor:.3g} {unit}"
