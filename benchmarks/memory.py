"""How much memory one call of a layer takes at its peak, ours and torch.nn's, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cases import GATES, MODE_TITLES, Mode, RecurrentCase
from benchmarks.machine import describe_machine
from benchmarks.problem import FUSED
from benchmarks.report import make_progress
from benchmarks.results import MemoryResult, Run

PEERS = (FUSED, "torch.nn")
SHAPES = ((200, 32, 256, 256), (100, 64, 512, 512), (500, 16, 128, 512))
# Each tensor has pages of its own and gives them back when it is freed, whatever was freed before: what is measured is
# what is in use at once, and the same in every process.
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**16),
    "MALLOC_TRIM_THRESHOLD_": str(2**16),
    "MALLOC_TOP_PAD_": "0",
}


def default_cases() -> list[RecurrentCase]:
    """LSTM and GRU of a few shapes, large enough that the outputs are some megabytes."""
    return [RecurrentCase(kind, *shape) for kind in GATES for shape in SHAPES]


def run_memory(cases: Sequence[RecurrentCase], console: Console) -> Run:
    """Measure inference and training of every case.

    Args:
        cases: What to compute.
        console: Where the progress bar goes.

    Returns:
        A result for each case and mode.

    Raises:
        subprocess.CalledProcessError: A process failed; it has said why.
    """
    run = Run(describe_machine())
    with make_progress(console) as progress:
        task = progress.add_task("", total=len(cases) * len(MODE_TITLES) * len(PEERS))
        for case in cases:
            for mode in MODE_TITLES:
                taken = {}
                for peer in PEERS:
                    progress.update(task, description=f"{case.group} {case.label} {MODE_TITLES[mode]}: {peer}")
                    taken[peer] = _measure(case, peer, mode)
                    progress.advance(task)
                run.memory.append(MemoryResult(case.group, case.label, mode, taken))
    return run


def _measure(case: RecurrentCase, peer: str, mode: Mode) -> int:
    """Bytes that a call adds, measured in a fresh process with as many threads as there are here."""
    arguments = [json.dumps(asdict(case)), peer, mode, str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.footprint", *arguments],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **ALLOCATOR_SETTINGS},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout)
