"""Plans for the persistent kernels: one that is asked for, and random ones for every kernel that is built."""

import random

import torch

from cuda_on_host.layer import Layer
from cuda_on_host.structs import Plan, Tiles

THREADS = 256


def divide_up(a: int, b: int) -> int:
    return -(-a // b)


def row_tiles(gates: int, units: int, backward: bool) -> int:
    """Return how many tiles of 16 the rows of a block's units fill."""
    return divide_up((1 if backward else gates) * units, 16)


def chunks_of_warp(layer: Layer) -> int:
    """Return how many chunks of 64 bytes of a hidden state each of the 8 warps multiplies."""
    return divide_up(layer.hidden_size * layer.dtype.itemsize, 8 * 64)


def plan_of(
    layer: Layer,
    backward: bool,
    cluster: bool,
    units: int,
    sequences: int = 8,
    batch_tiles: int = 1,
    chunks_in_registers: int = 0,
    launches: int = 1,
    partials: int = 2,
) -> Plan:
    """Return the plan whose blocks have so many units, and whose groups have so many sequences."""
    assert units % 2 == 0
    assert units * 8 * batch_tiles <= 2 * THREADS, "more units and sequences than the threads can finish"
    assert chunks_in_registers == 0 or chunks_in_registers >= chunks_of_warp(layer), (
        "fewer chunks in registers than there are"
    )
    return Plan(
        cluster=cluster,
        blocks=divide_up(layer.hidden_size, units),
        groups=divide_up(layer.batch, sequences),
        units=units,
        sequences=sequences,
        row_tiles=row_tiles(layer.gates, units, backward),
        batch_tiles=batch_tiles,
        chunks_in_registers=chunks_in_registers,
        partials=partials,
        directions=layer.directions // launches,
    )


def warpgroup_plan(
    layer: Layer, backward: bool, split: int, sequences: int = 64, launches: int = 1, partials: int = 2
) -> Plan:
    """Return the plan in which warpgroups multiply, and whose groups have so many sequences."""
    return Plan(
        blocks=divide_up(divide_up(layer.hidden_size, 16), split) * split,
        groups=divide_up(layer.batch, sequences),
        units=16,
        sequences=sequences,
        row_tiles=row_tiles(layer.gates, 16, backward),
        batch_tiles=8,
        split=split,
        partials=partials,
        directions=layer.directions // launches,
    )


def random_lengths(rng: random.Random, time: int, batch: int) -> dict[str, tuple[int, ...] | int]:
    """Return lengths, or the batch sizes of packed sequences, or nothing."""
    form = rng.choice(["all", "lengths", "packed"])
    lengths = [rng.randint(0, time) for _ in range(batch)]
    if form == "lengths":
        return {"lengths": tuple(lengths)}
    if form == "packed":
        sizes = [sum(max(length, 1) > t for length in lengths) for t in range(max(*lengths, 1))]
        return {"batch_sizes": tuple(sizes), "time": len(sizes)}
    return {}


def random_layer(rng: random.Random, kind: str, dtype: torch.dtype, allow_tf32: bool) -> Layer:
    """Return a small layer of any form."""
    values = 16 // dtype.itemsize
    time, batch = rng.randint(1, 4), rng.randint(1, 20)
    form = random_lengths(rng, time, batch)
    outputs = Layer(kind).outputs
    return Layer(
        kind, dtype, batch=batch, hidden_size=values * rng.randint(1, 72 // values), allow_tf32=allow_tf32,
        directions=rng.choice([1, 2]), bias=rng.random() < 0.7,
        unused=tuple(rng.sample(outputs, rng.randint(0, len(outputs) - 1))),
        **{"time": time, **form},  # type: ignore[arg-type]
    )  # fmt: skip


def random_case(
    seed: str, kind: str, dtype: torch.dtype, allow_tf32: bool, cluster: bool, tiles: dict[bool, Tiles]
) -> tuple[Layer, dict[bool, Plan]]:
    """Return a layer and plans with the given tiles, of few blocks; forward under False and backward under True."""
    rng = random.Random(seed)
    for _ in range(1000):
        layer = random_layer(rng, kind, dtype, allow_tf32)
        plans = {backward: _random_plan(rng, layer, backward, cluster, tiles[backward]) for backward in (False, True)}
        if all(plans.values()):
            return layer, {backward: plan for backward, plan in plans.items() if plan is not None}
    raise AssertionError(f"no plan has {tiles}: why is there a kernel for it?")


def _random_plan(rng: random.Random, layer: Layer, backward: bool, cluster: bool, tiles: Tiles) -> Plan | None:
    most = min(layer.hidden_size, 2 * THREADS // 8 // tiles.batch_tiles)
    units = [units for units in range(2, most + 1, 2) if row_tiles(layer.gates, units, backward) == tiles.row_tiles]
    if not units or (tiles.chunks_in_registers > 0 and tiles.chunks_in_registers < chunks_of_warp(layer)):
        return None
    sequences = rng.choice([8 * tiles.batch_tiles, rng.randint(1, 8 * tiles.batch_tiles), rng.randint(1, 24)])
    launches = rng.choice([1, layer.directions])
    plan = plan_of(
        layer, backward, cluster, rng.choice(units), sequences, tiles.batch_tiles, tiles.chunks_in_registers, launches,
        partials=rng.choice([1, 2]),
    )  # fmt: skip
    return plan if plan.blocks <= 8 and plan.blocks * plan.groups * layer.directions <= 16 else None
