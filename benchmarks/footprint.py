"""The peak resident memory of one call in a process that does nothing else: what `memory.py` starts for each number.

`python -m benchmarks.footprint CASE PEER MODE THREADS`, with a case as JSON, prints bytes. A tiny problem of the same
kind is checked first, so that whatever is made once for all calls is there already; weights, input and the gradient of
the output exist before the call as well and are not counted either. What counts is what the call adds: its outputs, its
gradients and all that it needs meanwhile.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cases import MODE_TITLES, Mode, RecurrentCase
from benchmarks.checking import check
from benchmarks.recurrent_peers import recurrent_problem

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def main(arguments: list[str]) -> None:
    """Print the bytes that one call adds at its peak."""
    text, name, mode_name, threads = arguments
    torch.set_num_threads(int(threads))
    mode = next(mode for mode in MODE_TITLES if mode == mode_name)
    print(footprint(RecurrentCase(**json.loads(text)), name, mode))


def footprint(case: RecurrentCase, peer_name: str, mode: Mode) -> int:
    """Bytes of resident memory that one call of a peer adds at its peak.

    Args:
        case: What to compute.
        peer_name: By which peer.
        mode: A call without gradients, or a forward and a backward pass.

    Returns:
        The peak during the call less what was resident just before.
    """
    tiny = replace(case, time=2, batch=2, input_size=16, hidden_size=16)
    check(tiny, recurrent_problem(tiny), mode)
    peer = next(peer for peer in recurrent_problem(case).peers if peer.name == peer_name)
    gc.collect()
    return peak_of(lambda: peer.run_once(mode))


def peak_of(function: Callable[[], object]) -> int:
    """Bytes of resident memory that `function` adds at its peak, what it returns included."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text(RESET_PEAK)
        before = _status_bytes("VmHWM")
        result = function()
        peak = _status_bytes("VmHWM")
    else:  # the peak of the whole process: too little is counted if making the data took more
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
