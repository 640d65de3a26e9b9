"""The README's tables: every group against every peer, with the cases where the fused kernels lose."""

from __future__ import annotations

from benchmarks.cases import MODE_TITLES, ConvolutionCase, Mode
from benchmarks.results import OURS, THEIRS, Result, Run, Summary, TrainingResult, summarise

Groups = dict[tuple[str, Mode], list[Result]]


def markdown_table(run: Run) -> str:
    """Markdown tables: the recurrent layers, the convolution, a line on how to read them, and the training jobs.

    Args:
        run: What was measured.

    Returns:
        The text. A row is a group, a column a peer, a cell the geometric mean of the ratios and the worst of them.
    """
    groups = run.groups()
    convolution = {key: results for key, results in groups.items() if key[0] == ConvolutionCase.group}
    recurrent = {key: results for key, results in groups.items() if key not in convolution}
    parts = [_table(part) for part in (recurrent, convolution) if part]
    machine = run.machine
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'} on {machine['cores']} cores"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "fused_rnn"))
    parts.append(
        "How many times as long as fused_rnn each peer takes: geometric mean over the cases, in brackets the worst "
        f"case, bold where fused_rnn is slower. {machine['processor']}, {machine['instruction_set']}, {threads}, "
        f"{versions} ({machine['commit']}), {str(machine['date'])[:10]}.\n"
    )
    if run.training:
        parts.append(_training_table(run.training))
    return "\n".join(parts)


def _table(groups: Groups) -> str:
    summaries = {key: summarise(results) for key, results in groups.items()}
    peers = list(dict.fromkeys(peer for summary in summaries.values() for peer in summary))
    lines = [["", *peers], ["---"] * (1 + len(peers))]
    for (group, mode), summary in summaries.items():
        cells = [_cell(summary[peer]) if peer in summary else "" for peer in peers]
        lines.append([f"{group} {MODE_TITLES[mode]}", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _training_table(training: list[TrainingResult]) -> str:
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
