"""The choice of a path against what an H200 measured: benchmarks/results/nvidia-h200-paths.csv."""

import csv
import math
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cuda_on_host.structs import H200, Kernels, Plan, PlanOverride, Problem

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "nvidia-h200-paths.csv"
PATHS = {"plain": 1, "cluster": 2, "grid": 3}
"""The paths as the file names them, and their numbers in PlanOverride; "plain" is the stepwise path."""
PLAN = re.compile(r"(\w+) (\d+)x(\d+)x(\d+) bt(\d) held(\d)")


@dataclass
class Measured:
    """What was measured of one layer: microseconds of a step, and the plans, for each path and pass."""

    gates: int
    element_bytes: int
    batch: int
    hidden_size: int
    times: dict[tuple[str, str], float] = field(default_factory=dict)
    plans: dict[tuple[str, bool], str] = field(default_factory=dict)

    def problem(self, backward: bool) -> Problem:
        return Problem(self.batch, self.hidden_size, 1, self.gates, self.element_bytes, True, backward)

    def has(self, path: str) -> bool:
        """Return whether a path was measured, and took at least one of the passes."""
        return (path, "both") in self.times

    def took(self, path: str, backward: bool) -> bool:
        return self.has(path) and self.plans[path, backward].startswith(path)

    def both(self, forward: str, backward: str) -> float:
        """Return the time of a forward and a backward pass; that of a backward pass is a difference of two times."""
        return self.times[forward, "forward"] + self.times[backward, "both"] - self.times[backward, "forward"]


def measured() -> list[Measured]:
    """Return the layers of the file."""
    layers: dict[tuple[str, ...], Measured] = {}
    with MEASURED.open() as file:
        for row in csv.DictReader(file):
            key = (row["kind"], row["dtype"], row["batch"], row["hidden"])
            gates, size = {"LSTM": 4, "GRU": 3}[row["kind"]], {"bfloat16": 2, "float32": 4}[row["dtype"]]
            layer = layers.setdefault(key, Measured(gates, size, int(row["batch"]), int(row["hidden"])))
            layer.times[row["path"], row["pass"]] = float(row["us_per_step"])
            layer.plans[row["path"], False] = row["plan_forward"]
            layer.plans[row["path"], True] = row["plan_backward"]
    return list(layers.values())


def path_of(plan: Plan) -> str:
    return "plain" if plan.blocks == 0 else "cluster" if plan.cluster else "grid"


def test_the_chosen_path_is_nearly_the_fastest(kernels: Kernels) -> None:
    ratios: dict[str, float] = {}
    for layer in measured():
        chosen = [path_of(kernels.choose_plan(layer.problem(b), H200, PlanOverride())) for b in (False, True)]
        paths = [[path for path in PATHS if layer.took(path, backward)] for backward in (False, True)]
        forward, both = layer.times[chosen[0], "forward"], layer.both(chosen[0], chosen[1])
        name = f"{layer.gates} gates of {layer.element_bytes} bytes, batch {layer.batch}, hidden {layer.hidden_size}"
        ratios[f"{name}, forward"] = forward / min(layer.times[path, "forward"] for path in paths[0])
        ratios[f"{name}, both"] = both / min(layer.both(f, b) for f in paths[0] for b in paths[1])
    assert len(ratios) == 220
    worst = max(ratios, key=lambda name: ratios[name])
    assert ratios[worst] <= 1.10, f"{worst}: {ratios[worst]:.2f}"
    assert math.exp(sum(map(math.log, ratios.values())) / len(ratios)) <= 1.03


def test_training_is_never_much_slower_than_cudnn(kernels: Kernels) -> None:
    for layer in measured():
        chosen = [path_of(kernels.choose_plan(layer.problem(b), H200, PlanOverride())) for b in (False, True)]
        ratio = layer.both(*chosen) / layer.times["cuDNN", "both"]
        assert ratio <= 1 / 0.9, f"{layer}: {ratio:.2f} times as long as cuDNN"


def test_the_chosen_plans_are_those_that_were_measured(kernels: Kernels) -> None:
    """Where a persistent path is chosen, its plan is that whose time the file has."""
    compared = 0
    for layer in measured():
        for backward in (False, True):
            plan = kernels.choose_plan(layer.problem(backward), H200, PlanOverride())
            if plan.blocks == 0:
                continue
            found = PLAN.match(layer.plans[path_of(plan), backward])
            assert found
            numbers = (plan.groups, plan.blocks, plan.units, plan.batch_tiles, plan.chunks_in_registers)
            assert tuple(map(int, found.groups()[1:])) == numbers
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("path", PATHS.values())
def test_a_huge_batch_is_planned_quickly(kernels: Kernels, path: int) -> None:
    """The number of plans that are tried does not grow with the batch."""
    start = time.process_time()
    for hidden_size in (8, 64, 512, 1024):
        for batch in (10**6, 2**31 - 1):
            problem = Problem(batch, hidden_size, 1, 4, 2)
            kernels.choose_plan(problem, H200, PlanOverride(path=path))
    assert time.process_time() - start < 1
