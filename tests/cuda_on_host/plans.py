"""Plans for the persistent kernels: one that is asked for, and random ones for every kernel that is built."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from cuda_on_host.layer import Layer
from cuda_on_host.structs import Plan

MOST_WARPS = 8
# The tiles in registers, (row_tiles, batch_tiles), for which there is a plan.
FORWARD_TILES = [(r, b) for r in (1, 2, 3, 4) for b in (1, 2, 4) if r * b <= 8]
BACKWARD_TILES = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)]


def divide_up(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Division:
    """How a block shares out its work: the part of a plan that does not depend on the layer."""

    units: int = 8
    sequences: int = 8
    teams: int = 1
    row_warps: int = 1
    depth_warps: int = 1
    batch_tiles: int = 1

    def row_tiles(self, layer: Layer, backward: bool) -> int:
        tiles = divide_up((1 if backward else layer.gates) * self.units, 16)
        return divide_up(tiles, self.row_warps)

    def is_possible(self) -> bool:
        """Whether the threads are not too many for a block, and enough for its units and sequences, two for each."""
        warps = self.row_warps * self.depth_warps
        return warps * self.teams <= MOST_WARPS and self.units * self.batch_tiles * 8 <= warps * 64

    def plan(self, layer: Layer, backward: bool, cluster: bool) -> Plan:
        assert self.is_possible(), self
        return Plan(
            cluster=cluster,
            blocks=divide_up(layer.hidden_size, self.units),
            groups=divide_up(layer.batch, self.sequences * self.teams),
            row_tiles=self.row_tiles(layer, backward),
            **vars(self),
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


def random_layer(rng: random.Random, kind: str, dtype: torch.dtype, exact: bool) -> Layer:
    """Return a small layer of any form."""
    values = 16 // dtype.itemsize
    time, batch = rng.randint(1, 4), rng.randint(1, 20)
    form = random_lengths(rng, time, batch)
    outputs = ["output", "h_n", "c_n", "cells"] if kind == "LSTM" else ["output", "h_n"]
    return Layer(
        kind, dtype, batch=batch, hidden_size=values * rng.randint(1, 72 // values), exact=exact,
        directions=rng.choice([1, 2]), bias=rng.random() < 0.7,
        unused=tuple(rng.sample(outputs, rng.randint(0, len(outputs) - 1))),
        **{"time": time, **form},  # type: ignore[arg-type]
    )  # fmt: skip


def random_divisions(rng: random.Random) -> Iterator[Division]:
    """Yield possible ways to share out a block's work, for ever."""
    while True:
        warps = [1, 2, 4, 8]
        batch_tiles, passes = rng.choice([1, 2, 4]), rng.choice([1, 1, 2])
        division = Division(
            rng.randint(1, 64), 8 * rng.randint(1, batch_tiles * passes), rng.choice([1, 1, 2, 4]), rng.choice(warps),
            rng.choice(warps), batch_tiles,
        )  # fmt: skip
        if division.is_possible():
            yield division


def random_case(
    seed: str, kind: str, dtype: torch.dtype, exact: bool, cluster: bool, tiles: dict[bool, tuple[int, int]]
) -> tuple[Layer, dict[bool, Plan]]:
    """Return a layer and plans with the given tiles, of few blocks; forward under False and backward under True."""
    rng = random.Random(seed)
    while True:
        layer = random_layer(rng, kind, dtype, exact)
        plans = {backward: _random_plan(rng, layer, backward, cluster, tiles[backward]) for backward in (False, True)}
        if all(plans.values()):
            return layer, {backward: plan for backward, plan in plans.items() if plan is not None}


def _random_plan(
    rng: random.Random, layer: Layer, backward: bool, cluster: bool, tiles: tuple[int, int]
) -> Plan | None:
    for _, division in zip(range(300), random_divisions(rng), strict=False):
        row_tiles = division.row_tiles(layer, backward)
        if (row_tiles, division.batch_tiles) != tiles or division.units > layer.hidden_size:
            continue
        plan = division.plan(layer, backward, cluster)
        if plan.blocks <= 5 and plan.blocks * plan.groups * layer.directions <= 12:
            return plan
    return None
