"""Writes what the plan of each problem on an H200 takes of the GPU, and how long a step lasts at least.

    PYTHONPATH=.:tests:tests/support python -m cuda_on_host.resources > benchmarks/results/nvidia-h200-resources.csv

Needs a build with CUDA for sm_90a, whose logs tell the registers, and no GPU. A step lasts at least as long as a value
takes from block to block and then the longest of these: all blocks read what was handed over, a block reads its weights
from shared memory, the products. The rates and the time from block to block are estimates, see
docs/notes/recurrent-gpu.md.
"""

import csv
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

from cases import structure_of
from compiled import kernels, logs

from benchmarks.cases import BATCHES, HIDDEN_SIZES, PRECISIONS, Precision
from cuda_on_host.build import build
from cuda_on_host.structs import H200, Kernels, Plan, PlanOverride, Problem

CLOCK = 1980  # MHz
L2_TERABYTES = 5.0  # a second, for all blocks
SHARED_BYTES = 128  # a clock, for a block
WAY = {True: 0.3, False: 0.7}  # microseconds from block to block, within a cluster or through the L2 cache
TERAFLOPS: dict[Precision, float] = {"bfloat16": 790, "float16": 790, "tf32": 395, "float32": 395 / 3}
KERNELS = {"LSTM": "LSTM", "GRU": "GRU", "RNN": "RNNTanh"}
"""The struct of each kind's cell in csrc/cells."""
TYPES = {"bfloat16": "13__nv_bfloat16", "float16": "6__half", "tf32": "f", "float32": "f"}
NAME = re.compile(
    r"persistent_(\w+?)INS0_\d+PersistentTraitsINS_5cells\d+(\w+?)E(13__nv_bfloat16|6__half|f)"
    r"Lb[01]ELi(\d+)ELi(\d+)ELb([01])ELi(\d+)E"
)

Key = tuple[str | int, ...]


def registers() -> dict[Key, int]:
    """Return the registers of a thread of each kernel for sm_90a."""
    found: dict[Key, int] = {}
    for log in logs():
        for kernel in kernels(log.read_text()):
            name = NAME.search(kernel["name"])
            if name and kernel["architecture"] == "sm_90a":
                direction, cell, dtype, *tiles = name.groups()
                key = (direction, cell, dtype, *map(int, tiles))
                found[key] = int(kernel["registers"])
    return found


def floor_of(plan: Plan, problem: Problem, precision: Precision) -> dict[str, float | str]:
    """Return what all blocks read and compute in a step, how long that takes at least, and what that comes from."""
    bytes_, hidden = problem.element_bytes, problem.hidden_size
    segments = problem.gates if problem.backward else 1
    read = plan.blocks * problem.batch * segments * hidden * bytes_ * plan.directions / 1e6
    weights = 0.0
    if plan.chunks_in_registers == 0:
        passes = -(-plan.sequences // (8 * plan.batch_tiles))
        weights = passes * plan.row_tiles * 16 * segments * hidden * bytes_ / 1e3
    mflop = 2 * problem.batch * problem.gates * hidden * hidden * plan.directions / 1e6
    times = {
        "reading what is handed on": read / L2_TERABYTES,
        "weights from shared memory": weights * 1e3 / SHARED_BYTES / CLOCK,
        "multiplying": mflop / TERAFLOPS[precision],
    }
    way = WAY[bool(plan.cluster)] if plan.blocks > 1 else 0.0
    bound = max(times, key=lambda name: times[name])
    return {
        "read_mb": round(read, 3), "weights_kb": round(weights, 1), "mflop": round(mflop, 1),
        "way_us": way, "bound": bound, "floor_us": round(way + times[bound], 2),
    }  # fmt: skip


def rows() -> Iterator[dict[str, float | str]]:
    """Yield a row for each problem of one direction."""
    library, built = Kernels(build()), registers()
    for kind, precision, hidden, batch, backward in product(KERNELS, PRECISIONS, HIDDEN_SIZES, BATCHES, (False, True)):
        problem = Problem(
            batch=batch, hidden_size=hidden, directions=1, gates=structure_of(kind).gates,
            element_bytes=2 if "16" in precision else 4, allow_tf32=precision == "tf32", backward=backward,
        )  # fmt: skip
        direction = "backward" if backward else "forward"
        row: dict[str, float | str] = {
            "kind": kind, "precision": precision, "hidden_size": hidden, "batch": batch, "direction": direction
        }  # fmt: skip
        plan = library.choose_plan(problem, H200, PlanOverride())
        if plan.blocks == 0:
            yield row | {"path": "stepwise"}
            continue
        key = (
            direction,
            KERNELS[kind],
            TYPES[precision],
            plan.row_tiles,
            plan.batch_tiles,
            int(plan.cluster),
            plan.chunks_in_registers,
        )
        yield row | {
            "path": "cluster" if plan.cluster else "grid",
            "groups": plan.groups, "blocks": plan.blocks, "units": plan.units, "sequences": plan.sequences,
            "registers": built[key], "shared_kb": round(library.shared_bytes(plan, problem) / 1024, 1),
            "multiprocessors": min(plan.groups * plan.blocks, H200.multiprocessors),
            **floor_of(plan, problem, precision), "estimate_us": round(library.estimate(plan, problem, H200), 2),
        }  # fmt: skip


def main() -> None:
    """Write the table to standard output."""
    if not registers():
        sys.exit("There is no log of a build for sm_90a: build with FUSED_RNN_CUDA=1 first.")
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    print(f"# Plans for an NVIDIA H200, kernels compiled by nvcc ({version}); nothing here was measured on a GPU.")
    every = list(rows())
    fields = max(every, key=len).keys()
    writer = csv.DictWriter(sys.stdout, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(every)


if __name__ == "__main__":
    main()
