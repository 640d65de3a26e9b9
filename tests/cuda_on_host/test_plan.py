"""The plans of csrc/cuda/persistent/plan.cu: each can be launched and does all of the work; and some are run."""

from itertools import product
from typing import Any

import pytest
import torch
from cases import CELLS
from comparing import assert_all_accurate

from cuda_on_host.host import OnHost
from cuda_on_host.layer import Layer, by_reference, peer_of
from cuda_on_host.plans import THREADS
from cuda_on_host.structs import Device, Kernels, Plan, PlanOverride, Problem, Tiles

ANY, STEPWISE, CLUSTER, GRID = range(4)
DEVICES = {
    "H100": Device(132, 227 * 1024, 16), "A100": Device(108, 163 * 1024, 1), "small": Device(20, 99 * 1024, 1),
    "slice of an H100": Device(16, 227 * 1024, 6),
}  # fmt: skip
BATCHES = (1, 7, 8, 9, 16, 33, 64, 100, 257)
SMALL: dict[str, Any] = {"batch": 25, "hidden_size": 72, "lengths": (3, 1, 2, 0, 3) * 5}
HIDDEN_SIZES = (4, 8, 24, 40, 72, 128, 192, 200, 256, 520, 768, 1000, 1024, 1536, 2048, 4096)


def problems() -> list[Problem]:
    """Return problems of all sizes that the kernels can have, for float32 and for half precision."""
    all_of_them = product(BATCHES, HIDDEN_SIZES, (1, 2), (1, 3, 4), (2, 4), (False, True), (False, True))
    return [Problem(*numbers) for numbers in all_of_them if numbers[1] * numbers[4] % 16 == 0]


def assert_fits(kernels: Kernels, plan: Plan, problem: Problem, device: Device) -> None:
    rows = (1 if problem.backward else problem.gates) * plan.units
    # All units, rows and sequences have someone, and no block has nothing.
    assert plan.units % 2 == 0
    assert (plan.blocks - 1) * plan.units < problem.hidden_size <= plan.blocks * plan.units
    assert rows <= plan.row_tiles * 16
    assert (plan.groups - 1) * plan.sequences < problem.batch <= plan.groups * plan.sequences
    # Each thread finishes two units of one sequence at a time.
    assert plan.units * plan.batch_tiles * 8 <= 2 * THREADS
    # It can be launched.
    built = kernels.built(problem.gates, problem.backward, problem.element_bytes, plan.cluster)
    assert Tiles(plan.row_tiles, plan.batch_tiles, plan.chunks_in_registers) in built
    assert (
        plan.chunks_in_registers == 0
        or plan.chunks_in_registers * 8 * 64 >= problem.hidden_size * problem.element_bytes
    )
    assert kernels.shared_bytes(plan, problem) <= device.shared_bytes
    if plan.cluster:
        # Without clusters there is no code for them, not even for one of a single block.
        assert device.clusters[plan.blocks] > 0
    else:
        assert plan.blocks * plan.groups * plan.directions <= device.multiprocessors
    assert plan.directions in (1, problem.directions)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", [ANY, CLUSTER, GRID])
def test_every_plan_fits(kernels: Kernels, device: str, path: int) -> None:
    plans = 0
    for problem in problems():
        plan = kernels.choose_plan(problem, DEVICES[device], PlanOverride(path=path))
        if plan.blocks == 0:
            continue
        plans += 1
        try:
            assert_fits(kernels, plan, problem, DEVICES[device])
            assert path == ANY or plan.cluster == (path == CLUSTER)
        except AssertionError as error:
            values = {name: getattr(problem, name) for name, *_ in problem._fields_}
            raise AssertionError(f"{values}: {plan}") from error
    if path == CLUSTER and not any(DEVICES[device].clusters):
        assert plans == 0
    else:
        assert plans > 500


def test_small_layers_have_a_plan(kernels: Kernels) -> None:
    for problem in problems():
        for device in DEVICES.values():
            few = 64 if device.multiprocessors > 100 else 16  # sequences that need no more blocks than there are
            if problem.hidden_size <= 128 and problem.directions * problem.batch <= few:
                assert kernels.choose_plan(problem, device, PlanOverride()).blocks > 0


@pytest.mark.parametrize("limit", [1, 7, 16, 100])
def test_no_plan_exceeds_the_limit(kernels: Kernels, limit: int) -> None:
    limited, plans = Device(132, 227 * 1024, 16, most_blocks=limit), 0
    for problem in problems():
        for path in (ANY, CLUSTER, GRID):
            plan = kernels.choose_plan(problem, limited, PlanOverride(path=path))
            assert plan.blocks * plan.groups * plan.directions <= limit
            if plan.blocks > 0:
                assert_fits(kernels, plan, problem, limited)
                plans += 1
    assert plans > 100


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_size": 12}, "16 bytes"),
        ({"hidden_size": 4096, "element_bytes": 4}, "do not fit"),
        ({"element_bytes": 8}, "float64"),
        ({"projected": True}, "projection"),
        ({"one_step": True}, "single step"),
    ],
    ids=str,
)
def test_no_plan(kernels: Kernels, change: dict[str, int], why: str) -> None:
    numbers = {"batch": 8, "hidden_size": 64, "directions": 1, "gates": 4, "element_bytes": 2}
    assert kernels.choose_plan(Problem(**numbers), DEVICES["H100"], PlanOverride()).blocks > 0
    assert kernels.choose_plan(Problem(**numbers), DEVICES["H100"], PlanOverride(path=STEPWISE)).blocks == 0
    problem = Problem(**{**numbers, **change})
    assert kernels.choose_plan(problem, DEVICES["H100"], PlanOverride()).blocks == 0
    assert why in kernels.why_stepwise(problem, PlanOverride())


@pytest.mark.parametrize(
    ("hidden_size", "element_bytes", "time", "path", "padded"),
    [
        (650, 2, 16, ANY, 656), (650, 2, 15, ANY, 650), (650, 2, 2, GRID, 656), (656, 2, 2, ANY, 656),
        (65, 2, 99, ANY, 72), (63, 2, 99, ANY, 63), (63, 2, 99, CLUSTER, 63), (61, 4, 99, ANY, 64), (1, 4, 99, ANY, 4),
    ],
)  # fmt: skip
def test_padding(kernels: Kernels, hidden_size: int, element_bytes: int, time: int, path: int, padded: int) -> None:
    problem = Problem(16, hidden_size, 1, 4, element_bytes)
    assert kernels.padded_size(problem, time, PlanOverride(path=path)) == padded
    problem.hidden_size = padded
    plan = kernels.choose_plan(problem, DEVICES["H100"], PlanOverride(path=path))
    assert (plan.blocks > 0) == (padded * element_bytes % 16 == 0)


def test_one_direction_after_the_other(kernels: Kernels) -> None:
    # Where both directions do not fit at once, each has the plan of a layer with one; elsewhere nothing changes.
    for hidden_size, launches in ((512, 1), (768, 1), (1024, 1), (1280, 2), (1536, 2)):
        for backward in (False, True):
            both, one = (Problem(16, hidden_size, directions, 3, 2, True, backward) for directions in (2, 1))
            plan, of_one = (kernels.choose_plan(problem, DEVICES["H100"], PlanOverride()) for problem in (both, one))
            assert_fits(kernels, plan, both, DEVICES["H100"])
            assert plan.directions * launches == 2
            if launches == 2:
                assert str(plan) == str(of_one)
                assert kernels.estimate(plan, both, DEVICES["H100"]) == pytest.approx(
                    2 * kernels.estimate(of_one, one, DEVICES["H100"])
                )


@pytest.mark.parametrize("directions", [1, 2])
def test_stepwise_path_takes_less_time(kernels: Kernels, directions: int) -> None:
    large = Problem(128, 1536, directions, 4, 2, True, True)
    assert kernels.choose_plan(large, DEVICES["H100"], PlanOverride()).blocks == 0
    assert "takes less time" in kernels.why_stepwise(large, PlanOverride())
    assert kernels.choose_plan(large, DEVICES["H100"], PlanOverride(path=GRID)).directions == 1


def test_one_buffer_where_two_do_not_fit(kernels: Kernels) -> None:
    for batch, partials in ((8, 2), (16, 1), (128, 1)):
        problem = Problem(batch, 1536, 1, 4, 2, True, False)
        plan = kernels.choose_plan(problem, DEVICES["H100"], PlanOverride(path=GRID))
        assert plan.partials == partials
        assert_fits(kernels, plan, problem, DEVICES["H100"])


def test_overrides(kernels: Kernels) -> None:
    problem = Problem(64, 256, 1, 4, 2, False, False)
    for name, values in {
        "blocks": (8, 16), "chunks_in_registers": (0, 2), "groups": (1, 2, 8), "batch_tiles": (1, 2)
    }.items():  # fmt: skip
        for value in values:
            plan = kernels.choose_plan(problem, DEVICES["H100"], PlanOverride(**{name: value}))
            assert getattr(plan, name) == value
            assert_fits(kernels, plan, problem, DEVICES["H100"])


@pytest.mark.parametrize("plan_override", [{}, {"batch_tiles": 2}, {"groups": 1}, {"chunks_in_registers": 0}], ids=str)
@pytest.mark.parametrize("path", [CLUSTER, GRID], ids={CLUSTER: "cluster", GRID: "grid"}.get)
@pytest.mark.parametrize("kind", CELLS)
def test_chosen_plans_run(kernels: Kernels, kind: str, path: int, plan_override: dict[str, int]) -> None:
    run_chosen(
        kernels,
        Layer(kind, torch.bfloat16, **SMALL),
        Device(12, 227 * 1024, 8),
        PlanOverride(path=path, **plan_override),
        1,
    )


@pytest.mark.parametrize("kind", CELLS)
def test_chosen_plans_run_one_direction_after_the_other(kernels: Kernels, kind: str) -> None:
    # Of three blocks and more for each direction.
    run_chosen(kernels, Layer(kind, torch.bfloat16, directions=2, **SMALL), Device(5, 227 * 1024, 1), PlanOverride(), 2)


def run_chosen(kernels: Kernels, layer: Layer, device: Device, plan_override: PlanOverride, launches: int) -> None:
    host = OnHost(kernels, layer)
    for backward in (False, True):
        problem = Problem(layer.batch, layer.hidden_size, layer.directions, layer.gates, 2, True, backward)
        plan = kernels.choose_plan(problem, device, plan_override)
        assert plan.blocks > 0, "no such plan"
        assert plan.directions * launches == layer.directions
        assert_fits(kernels, plan, problem, device)
        (host.backward if backward else host.forward)(plan)
    assert_all_accurate(host.result(), by_reference(layer, torch.float64), peer_of(layer))
