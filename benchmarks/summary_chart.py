"""Draws the picture of the README: every group's geometric mean, on the CPU and on the GPU.

    python -m benchmarks.summary_chart [--cpu FILE] [--gpu FILE] [--output PNG]

The files are those that `python -m benchmarks` and `python -m benchmarks.gpu` wrote.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.results import Run, Summary, summarise

ROOT = Path(__file__).parents[1]
CPU_RESULTS = ROOT / "benchmarks" / "results" / "amd-epyc-avx2-2-threads.json"
GPU_RESULTS = ROOT / "benchmarks" / "results" / "nvidia-h200.json"
PICTURE = ROOT / "docs" / "pictures" / "summary.png"

# PyTorch's own implementation: the first of these peers that a group has.
CPU_PEERS = ("torch.nn", "torch.nn cells", "dense channels_last")
GPU_PEERS = ("cuDNN",)
OTHER_PEER = "ONNX Runtime"
GRAPHS = ", graphs"  # the suffix of groups that were timed as replayed CUDA graphs
MODES = {"forward": ("forward", "#66ccee"), "training": ("forward + backward", "#4477aa")}
OTHER_COLOUR = "#ee6677"
WIDTH, ROW, MARGINS = 8.0, 0.3, 2.4  # inches


@dataclass(frozen=True)
class Bar:
    """One group in one mode: the summary of PyTorch's peer, and that of ONNX Runtime if it was timed."""

    peer: Summary
    other: Summary | None


Rows = dict[str, dict[str, Bar]]


def rows_of(run: Run, peers: tuple[str, ...], ending: str = "") -> Rows:
    """Summarise the groups of more than one case.

    Args:
        run: The results.
        peers: The peers of which the first one that a group has is shown.
        ending: A suffix of group names; only groups with it are shown, by their names without it.

    Returns:
        A bar for each mode of each group, by the group's name.
    """
    rows: Rows = {}
    for (group, mode), results in run.groups().items():
        summaries = summarise(results)
        peer = next((name for name in peers if name in summaries), None)
        if peer is not None and group.endswith(ending) and summaries[peer].cases > 1:
            name = group.removesuffix(ending).replace("_", " ")
            rows.setdefault(name, {})[mode] = Bar(summaries[peer], summaries.get(OTHER_PEER))
    return rows


def draw_summary(cpu: Run, gpu: Run, path: Path) -> None:
    """Draw the panel of the CPU above that of the GPU, with one scale for both.

    Args:
        cpu: The results of a CPU.
        gpu: The results of a GPU.
        path: The PNG file to write.
    """
    panels = [
        (rows_of(cpu, CPU_PEERS), f"{_machine(cpu)}, {cpu.machine['threads']} threads: time of PyTorch over ours"),
        (rows_of(gpu, GPU_PEERS, GRAPHS), f"{_machine(gpu)}, CUDA graphs: time of cuDNN over ours"),
    ]
    heights = [len(rows) for rows, _ in panels]
    figure = Figure(figsize=(WIDTH, MARGINS + ROW * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(2, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for column, (rows, title) in zip(columns, panels, strict=True):
        _draw_panel(column, rows)
        column.set_title(title, loc="left", fontsize=11, weight="bold")
    _set_scale(columns[0], [rows for rows, _ in panels])
    columns[0].tick_params(axis="x", labelbottom=True)
    handles: list[Artist] = [Patch(color=colour, label=title) for title, colour in MODES.values()]
    handles += [
        Line2D([], [], color="black", marker="|", markersize=9, linestyle="", label="worst case of the group"),
        Line2D([], [], color=OTHER_COLOUR, marker="D", markersize=6, linestyle="", label=OTHER_PEER),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _machine(run: Run) -> str:
    return f"{run.machine['processor']} ({run.machine['instruction_set']})"


def _draw_panel(column: Axes, rows: Rows) -> None:
    for position, bars in enumerate(rows.values()):
        for offset, (mode, bar) in enumerate(bars.items()):
            y = position + 0.36 * (offset - 0.5)
            column.barh(y, bar.peer.mean - 1, left=1, height=0.36, color=MODES[mode][1])
            column.plot(bar.peer.worst, y, color="black", marker="|", markersize=9)
            if bar.other is not None:
                column.plot(bar.other.mean, y, color=OTHER_COLOUR, marker="D", markersize=5)
            ours_faster = bar.peer.mean >= 1
            column.annotate(
                f"{bar.peer.mean:.1f}x", (bar.peer.mean, y), (4 if ours_faster else -4, 0), textcoords="offset points",
                ha="left" if ours_faster else "right", va="center_baseline", fontsize=8,
            )  # fmt: skip
    column.axvline(1, color="black", linewidth=0.8)
    column.set_yticks(range(len(rows)), list(rows))
    column.set_ylim(len(rows) - 0.4, -0.6)
    column.grid(axis="x", color="0.92")
    column.set_axisbelow(True)
    column.spines[["top", "right", "left"]].set_visible(False)
    column.tick_params(axis="y", length=0)


def _set_scale(column: Axes, panels: list[Rows]) -> None:
    bars = [bar for rows in panels for modes in rows.values() for bar in modes.values()]
    values = [value for bar in bars for value in (bar.peer.worst, bar.peer.mean)]
    lower, upper = min(0.5, 0.9 * min(values)), max(2.0, 1.2 * max(values))
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16) if lower <= tick <= upper]
    column.set_xscale("log")
    column.set_xlim(lower, upper)
    column.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    column.minorticks_off()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, which draws the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary_chart", description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", type=Path, default=CPU_RESULTS, help="JSON file of a processor (%(default)s)")
    parser.add_argument("--gpu", type=Path, default=GPU_RESULTS, help="JSON file of a GPU (%(default)s)")
    parser.add_argument("--output", type=Path, default=PICTURE, help="PNG file to write (%(default)s)")
    options = parser.parse_args(arguments)
    draw_summary(Run.load(options.cpu), Run.load(options.gpu), options.output)


if __name__ == "__main__":
    main()
