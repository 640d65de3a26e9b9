"""The charts: for every case the ratio of each peer's time to that of fused_rnn, and for sweeps time against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.cases import LAYERS, MODE_TITLES, Mode
from benchmarks.results import Result, Run
from benchmarks.scaling import PEERS, TITLES, Sweep

# Paul Tol's bright colour scheme, which colour-blind readers can distinguish, and two more colours.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#bbbbbb", "#222255")
SLOT = 0.16  # inches from one bar to the next
COLUMN_WIDTH = 6.0
MARGINS = 1.6
PANEL_SIZE = (5.5, 3.6)  # inches
LIMIT_STYLE: dict[str, Any] = {"color": "0.4", "linestyle": "--", "linewidth": 1.2}
PEER_COLOURS = dict(zip(PEERS, COLOURS, strict=False))

Positions = dict[tuple[str, str], int]


def draw_chart(run: Run, path: Path) -> None:
    """Draw forward on the left and forward + backward on the right, where there are any, a bar for each case and peer.

    Args:
        run: The results.
        path: The PNG file to write.
    """
    headings, positions, slots = _lay_out(run)
    peers = list(dict.fromkeys(peer for result in run.results for peer in result.ratios()))
    colours = {peer: COLOURS[index % len(COLOURS)] for index, peer in enumerate(peers)}
    modes = [mode for mode in MODE_TITLES if any(result.mode == mode for result in run.results)]
    figure = Figure(figsize=(2.5 + COLUMN_WIDTH * len(modes), MARGINS + SLOT * slots), layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(1, len(modes), sharex=True, sharey=True, squeeze=False)[0]
    for column, mode in zip(columns, modes, strict=True):
        _draw_column(column, mode, run, positions, colours)
        for heading, position in headings.items():
            column.axhline(position - 0.9, color="0.85", linewidth=0.8)
            column.annotate(heading, (0, position), (4, 0), ("axes fraction", "data"), "offset points", weight="bold")
    columns[0].set_yticks(list(positions.values()), [label for _, label in positions], fontsize=8)
    columns[0].set_ylim(slots, -1)
    _set_scale(columns[0], run)
    machine = run.machine
    figure.suptitle(
        "Time of each peer over the time of fused_rnn: right of the line fused_rnn is faster\n"
        f"{machine['processor']}, threads: {machine['threads']}, torch {machine['torch']}, {str(machine['date'])[:10]}"
    )
    handles = [Patch(color=colour, label=peer) for peer, colour in colours.items()]
    columns = min(len(handles), 4)  # more of them would be wider than the narrowest figure
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _lay_out(run: Run) -> tuple[dict[str, int], Positions, int]:
    """Return the slots, from the top, of each group's heading and each case's first bar, and the number of slots."""
    bars: dict[str, dict[str, int]] = {}
    for result in run.results:
        labels = bars.setdefault(result.group, {})
        labels[result.label] = max(labels.get(result.label, 0), len(result.ratios()))
    headings, positions, slot = {}, {}, 0
    for group, labels in bars.items():
        headings[group] = slot
        slot += 1
        for label, count in labels.items():
            positions[group, label] = slot
            slot += count + 1
    return headings, positions, slot


def _draw_column(column: Axes, mode: Mode, run: Run, positions: Positions, colours: Mapping[str, str]) -> None:
    for result in run.results:
        if result.mode == mode:
            _draw_case(column, result, positions[result.group, result.label], colours)
    column.axvline(1, color="black", linewidth=0.8)
    column.set_title(MODE_TITLES[mode])
    column.grid(axis="x", color="0.92")
    column.set_axisbelow(True)
    column.spines[["top", "right", "left"]].set_visible(False)
    column.tick_params(axis="y", length=0)


def _draw_case(column: Axes, result: Result, position: int, colours: Mapping[str, str]) -> None:
    for offset, (peer, ratio) in enumerate(result.ratios().items()):
        y = position + offset
        column.barh(y, ratio - 1, left=1, height=0.9, color=colours[peer])
        side, alignment = (3, "left") if ratio >= 1 else (-3, "right")
        text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
        column.annotate(
            text, (ratio, y), (side, 0), "data", "offset points", ha=alignment, va="center_baseline", fontsize=7
        )


def _set_scale(column: Axes, run: Run) -> None:
    ratios = [ratio for result in run.results for ratio in result.ratios().values()]
    column.set_xscale("log")
    column.set_xlim(min(0.6, 0.7 * min(ratios)), max(2.0, 1.4 * max(ratios)))
    ticks = [factor * 10**power for power in range(-3, 4) for factor in (1, 2, 5)]
    lower, upper = column.get_xlim()
    shown = [tick for tick in ticks if lower <= tick <= upper]
    column.set_xticks(shown, [f"{tick:g}x" for tick in shown])
    column.minorticks_off()


def draw_scaling(sweep: Sweep, run: Run, path: Path) -> None:
    """Draw one row for each kind of layer, forward on the left and forward + backward on the right.

    Both axes are logarithmic.

    Args:
        sweep: The part of the run to draw.
        run: The results.
        path: The PNG file to write.
    """
    groups = run.groups()
    kinds = [kind for kind in LAYERS if (sweep.group(kind), "forward") in groups]  # older runs have fewer
    width, height = PANEL_SIZE
    figure = Figure(figsize=(width * len(MODE_TITLES), 1.0 + height * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(kinds), len(MODE_TITLES), sharex=True, squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
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
    """Format a time, such as `10 ms`."""
    factor, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * factor:.3g} {unit}"
