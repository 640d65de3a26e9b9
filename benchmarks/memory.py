"""The peak memory of one call of a layer, ours and torch.nn's, each measured in a separate process.

`python -m benchmarks.memory CASE PEER MODE THREADS`, with a case as JSON, is such a process and prints bytes. It first
checks a tiny problem of the same kind, so that everything that is allocated only once exists already. The memory that
the call adds is counted: its outputs, its gradients, and all temporary memory. Weights, input and the gradient of the
output exist before the call and are not counted.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cases import KINDS, MODE_TITLES, Mode, RecurrentCase
from benchmarks.machine import describe_machine
from benchmarks.problem import FUSED, check
from benchmarks.recurrent_peers import recurrent_problem
from benchmarks.report import make_progress
from benchmarks.results import MemoryResult, Run

PEERS = (FUSED, "torch.nn")
SHAPES = ((200, 32, 256, 256), (100, 64, 512, 512), (500, 16, 128, 512))
# With these settings malloc gives each tensor its own pages and returns them when it is freed. So the peak is the
# memory in use at the same time, and it is the same in every process.
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**16),
    "MALLOC_TRIM_THRESHOLD_": str(2**16),
    "MALLOC_TOP_PAD_": "0",
}
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def default_cases() -> list[RecurrentCase]:
    """Every kind of layer in a few shapes, large enough that the outputs are some megabytes, and once in bfloat16."""
    half = [RecurrentCase(kind, *SHAPES[1], dtype="bfloat16") for kind in KINDS]
    return [*(RecurrentCase(kind, *shape) for kind in KINDS for shape in SHAPES), *half]


def run_memory(cases: Sequence[RecurrentCase], console: Console) -> Run:
    """Measure inference and training of every case.

    Args:
        cases: The cases to compute.
        console: The console for the progress bar.

    Returns:
        A result for each case and mode.

    Raises:
        subprocess.CalledProcessError: A process failed, and printed the reason.
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
    """The bytes that a call adds, measured in a new process with the same number of threads."""
    arguments = [json.dumps(asdict(case)), peer, mode, str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **ALLOCATOR_SETTINGS},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout)


def main(arguments: list[str]) -> None:
    """Print the bytes that one call adds at its peak."""
    text, name, mode_name, threads = arguments
    torch.set_num_threads(int(threads))
    mode = next(mode for mode in MODE_TITLES if mode == mode_name)
    print(footprint(RecurrentCase(**json.loads(text)), name, mode))


def footprint(case: RecurrentCase, peer_name: str, mode: Mode) -> int:
    """The bytes of resident memory that one call of a peer adds at its peak.

    Args:
        case: The case to compute.
        peer_name: The peer that computes it.
        mode: A call without gradients, or a forward and a backward pass.

    Returns:
        The peak during the call minus the resident memory just before.
    """
    tiny = replace(case, time=2, batch=2, input_size=16, hidden_size=16)
    check(tiny, recurrent_problem(tiny), mode)
    peer = next(peer for peer in recurrent_problem(case).peers if peer.name == peer_name)
    gc.collect()
    return peak_of(lambda: peer.run_once(mode))


def peak_of(function: Callable[[], object]) -> int:
    """The bytes of resident memory that `function` adds at its peak, its result included."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text(RESET_PEAK)
        before = _status_bytes("VmHWM")
        result = function()
        peak = _status_bytes("VmHWM")
    else:  # The peak of the whole process, which is too low a count if making the data took more memory than the call.
        before = _highest_ever()
        result = function()
        peak = _highest_ever()
    del result
    return peak - before


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no {name}"
    return 1024 * int(found[1])


def _highest_ever() -> int:
    import resource  # not on Windows

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


if __name__ == "__main__":
    main(sys.argv[1:])
