"""The persistent kernels in which warpgroups multiply, on the CPU, against the reference."""

import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import CELLS
from comparing import assert_identical, assert_same_noise

from cuda_on_host.host import OnHost
from cuda_on_host.layer import Layer, by_reference, peer_of
from cuda_on_host.plans import random_layer, warpgroup_plan
from cuda_on_host.structs import Kernels, Plan
from cuda_on_host.test_persistent import FORMS, check, run

DTYPES = [torch.bfloat16, torch.float16]
SPLITS = {False: (1, 2), True: (2, 4)}
"""For the passes forward and backward, the numbers of blocks that share out the depth for which kernels are built."""
HALF_FORMS = list(dict.fromkeys(replace(form, dtype=torch.bfloat16, hidden_size=40) for form in FORMS))


def plans(layer: Layer, split: int = 2, sequences: int = 64, launches: int = 1) -> tuple[Plan, Plan]:
    return (
        warpgroup_plan(layer, False, split, sequences, launches),
        warpgroup_plan(layer, True, max(split, 2), sequences, launches),
    )


@pytest.mark.parametrize(("forward", "backward"), list(product(*SPLITS.values())))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_every_kernel(kernels: Kernels, kind: str, dtype: torch.dtype, forward: int, backward: int) -> None:
    rng = random.Random(f"{kind} {dtype} {forward} {backward}")
    for index in range(2):
        layer = random_layer(rng, kind, dtype, False)
        sequences, launches = rng.choice([64, layer.batch, rng.randint(1, 24)]), rng.choice([1, layer.directions])
        kernels.choose_schedule(index)
        check(
            kernels,
            layer,
            warpgroup_plan(layer, False, forward, sequences, launches, partials=rng.choice([1, 2][forward - 1 :])),
            warpgroup_plan(layer, True, backward, sequences, launches),
        )


@pytest.mark.parametrize("layer", HALF_FORMS, ids=str)
def test_every_form(kernels: Kernels, layer: Layer) -> None:
    check(kernels, layer, *plans(layer))


@pytest.mark.parametrize(
    "layer",
    [
        # Several tiles of sequences in a group, of which the last one is not full, and several groups.
        Layer("LSTM", torch.bfloat16, time=3, batch=150, hidden_size=24),
        Layer("GRU", torch.float16, time=3, batch=130, hidden_size=16, lengths=tuple(range(4)) * 32 + (1, 3)),
        # More batches of chunks than are loaded at a time, and blocks without units.
        Layer("LSTM", torch.bfloat16, time=2, batch=3, hidden_size=904),
        Layer("RNN", torch.float16, time=3, batch=2, hidden_size=1288),
    ],
    ids=str,
)
def test_large(kernels: Kernels, layer: Layer) -> None:
    for split in SPLITS[False]:
        check(kernels, layer, *plans(layer, split, sequences=128))


@pytest.mark.parametrize("kind", CELLS)
def test_no_rounding_too_many(kernels: Kernels, kind: str) -> None:
    layer = Layer(kind, torch.bfloat16, time=20, batch=64, hidden_size=40)
    ours, exact = run(kernels, layer, *plans(layer)), by_reference(layer, torch.float64)
    assert_same_noise(ours, exact, peer_of(layer))


@pytest.mark.parametrize("kind", CELLS)
def test_same_bits_whoever_is_ahead(kernels: Kernels, kind: str) -> None:
    layer = Layer(kind, torch.bfloat16, time=5, batch=19, hidden_size=72, lengths=(5, 1, 3) * 6 + (0,))
    results = []
    for seed in range(4):
        kernels.choose_schedule(seed)
        results.append(run(kernels, layer, *plans(layer)))
        assert_identical(results[-1], results[0])


def test_one_direction_after_the_other(kernels: Kernels) -> None:
    layer = Layer("LSTM", torch.bfloat16, time=4, batch=9, hidden_size=24, directions=2, lengths=(4, 0, 2) * 3)
    assert_identical(*(run(kernels, layer, *plans(layer, launches=launches)) for launches in (1, 2)))


def test_nothing_saved(kernels: Kernels) -> None:
    layer = Layer("LSTM", torch.bfloat16, batch=9, hidden_size=24, lengths=(3, 0, 2) * 3)
    plan = warpgroup_plan(layer, False, 1)
    saved, not_saved = OnHost(kernels, layer), OnHost(kernels, layer)
    before = not_saved.gates.clone()
    saved.forward(plan)
    not_saved.forward(plan, save_for_backward=False)
    assert_identical({"output": not_saved.output, **not_saved.final}, {"output": saved.output, **saved.final})
    assert torch.equal(not_saved.gates.view(torch.int16), before.view(torch.int16))
    assert all(cells.isnan().all() for cells in not_saved.cells.values())
