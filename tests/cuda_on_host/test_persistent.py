"""The persistent kernels of csrc/cuda/ on the CPU, against the reference."""

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from cases import CELLS
from comparing import assert_all_accurate, assert_identical, assert_same_noise

from cuda_on_host.host import OnHost
from cuda_on_host.layer import Layer, Result, by_reference, peer_of
from cuda_on_host.plans import plan_of, random_case
from cuda_on_host.structs import Kernels, Plan

NUMBERS = {
    "float32": (torch.float32, False), "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False), "float16": (torch.float16, False),
}  # fmt: skip
CLUSTER = {"grid": False, "cluster": True}


def run(kernels: Kernels, layer: Layer, forward: Plan, backward: Plan) -> Result:
    host = OnHost(kernels, layer)
    host.forward(forward)
    host.backward(backward)
    return host.result()


def check(kernels: Kernels, layer: Layer, forward: Plan, backward: Plan) -> None:
    assert_all_accurate(run(kernels, layer, forward, backward), by_reference(layer, torch.float64), peer_of(layer))


@pytest.mark.parametrize("path", CLUSTER)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", CELLS)
def test_every_kernel(kernels: Kernels, kind: str, number: str, path: str) -> None:
    gates, size = Layer(kind).gates, NUMBERS[number][0].itemsize
    built = [kernels.built(gates, backward, size, CLUSTER[path]) for backward in (False, True)]
    assert min(map(len, built)) > (3 if gates > 1 else 2)
    for index, (forward, backward) in enumerate(zip(built[0], cycle(built[1]), strict=False)):
        seed = f"{kind} {number} {path} {forward} {backward}"
        layer, plans = random_case(seed, kind, *NUMBERS[number], CLUSTER[path], {False: forward, True: backward})
        print(f"{layer}\n  forward {plans[False]}\n  backward {plans[True]}")
        kernels.choose_schedule(index)
        check(kernels, layer, plans[False], plans[True])


def test_many_chunks(kernels: Kernels) -> None:
    # More chunks than the warps multiply at a time, and as many as they keep in registers at most.
    for layer, units, chunks_in_registers in (
        (Layer("LSTM", time=2, batch=2, hidden_size=516), {False: 16, True: 16}, {False: 0, True: 0}),
        (Layer("GRU", torch.bfloat16, time=2, batch=2, hidden_size=392), {False: 16, True: 32}, {False: 4, True: 0}),
        (Layer("LSTM", torch.bfloat16, time=2, batch=2, hidden_size=264), {False: 32, True: 16}, {False: 0, True: 3}),
    ):
        forward, backward = (
            plan_of(layer, b, False, units[b], chunks_in_registers=chunks_in_registers[b]) for b in (False, True)
        )
        check(kernels, layer, forward, backward)
    layer = Layer("LSTM", torch.bfloat16, time=2, batch=2, hidden_size=280)
    check(kernels, layer, plan_of(layer, False, True, 32, chunks_in_registers=2), plan_of(layer, True, True, 32))


# Layers of every form; hidden sizes that fill neither the last block nor the last chunk of a sum.
FORMS = [
    Layer("LSTM", time=1, batch=1, hidden_size=4),
    Layer("LSTM", time=6, batch=9, hidden_size=20, directions=2),
    Layer("LSTM", time=1, batch=9, hidden_size=40),
    Layer("LSTM", batch=17, hidden_size=36, bias=False),
    Layer("LSTM", time=4, batch=6, hidden_size=20, lengths=(2, 0, 4, 1, 4, 3), directions=2),
    Layer("LSTM", time=2, batch=10, hidden_size=20, lengths=(0,) * 10, directions=2),
    Layer("LSTM", time=2, batch=10, hidden_size=20, lengths=(0,) * 9 + (2,), directions=2),
    Layer("LSTM", time=4, batch=11, hidden_size=20, batch_sizes=(11, 9, 8, 1), directions=2),
    Layer("LSTM", time=3, batch=9, hidden_size=20, nan=True, directions=2),
    Layer("LSTM", time=3, batch=9, hidden_size=20, nan=True, lengths=(2, 0, 3, 1, 2, 3, 3, 0, 3), directions=2),
    Layer("LSTM", batch=9, hidden_size=20, unused=("output",)),
    Layer("LSTM", batch=9, hidden_size=20, unused=("h_n", "c_n", "cells")),
    Layer("LSTM", batch=9, hidden_size=20, unused=("output", "h_n", "c_n")),
    Layer("LSTM", batch=9, hidden_size=20, unused=("output", "h_n", "cells")),
]
FORMS += [
    replace(form, kind=kind, unused=tuple(set(form.unused) & {"h_n", "output"}))
    for kind in ("GRU", "RNN", "RNN_RELU")
    for form in FORMS[:12]
]
FORMS += [replace(form, dtype=torch.bfloat16, hidden_size=40) for form in FORMS if form.nan or form.lengths]


@pytest.mark.parametrize("path", CLUSTER)
@pytest.mark.parametrize("layer", FORMS, ids=str)
def test_every_form(kernels: Kernels, layer: Layer, path: str) -> None:
    forward, backward = (plan_of(layer, backward, CLUSTER[path], units=16) for backward in (False, True))
    check(kernels, layer, forward, backward)


@pytest.mark.parametrize("path", CLUSTER)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_no_rounding_too_many(kernels: Kernels, kind: str, dtype: torch.dtype, path: str) -> None:
    # In the RNN with tanh few sequences dominate the error after many steps: fewer steps of more sequences average out.
    time, batch = (20, 100) if kind == "RNN" else (40, 20)
    layer = Layer(kind, dtype, time=time, batch=batch, hidden_size=40)
    forward, backward = (plan_of(layer, backward, CLUSTER[path], units=16) for backward in (False, True))
    ours, exact = run(kernels, layer, forward, backward), by_reference(layer, torch.float64)
    assert_all_accurate(ours, exact, peer_of(layer))
    assert_same_noise(ours, exact, peer_of(layer))


@pytest.mark.parametrize("path", CLUSTER)
@pytest.mark.parametrize("kind", CELLS)
def test_same_bits_whoever_is_ahead(kernels: Kernels, kind: str, path: str) -> None:
    layer = Layer(kind, time=5, batch=19, hidden_size=40, lengths=(5, 1, 3) * 6 + (0,))
    forward, backward = (plan_of(layer, backward, CLUSTER[path], units=16, sequences=16) for backward in (False, True))
    results = []
    for seed in range(6):
        kernels.choose_schedule(seed)
        results.append(run(kernels, layer, forward, backward))
        assert_identical(results[-1], results[0])


@pytest.mark.parametrize("path", CLUSTER)
@pytest.mark.parametrize("kind", CELLS)
def test_one_direction_after_the_other(kernels: Kernels, kind: str, path: str) -> None:
    layer = Layer(kind, time=4, batch=9, hidden_size=20, directions=2, lengths=(4, 0, 2) * 3)
    results = []
    for launches in (1, 2):
        plans = (plan_of(layer, backward, CLUSTER[path], 16, launches=launches) for backward in (False, True))
        results.append(run(kernels, layer, *plans))
    assert_identical(results[1], results[0])


@pytest.mark.parametrize("path", CLUSTER)
@pytest.mark.parametrize("kind", CELLS)
def test_nothing_saved(kernels: Kernels, kind: str, path: str) -> None:
    layer = Layer(kind, batch=9, hidden_size=20, lengths=(3, 0, 2) * 3)
    plan = plan_of(layer, False, CLUSTER[path], units=16)
    saved, not_saved = OnHost(kernels, layer), OnHost(kernels, layer)
    before = not_saved.gates.clone()
    saved.forward(plan)
    not_saved.forward(plan, save_for_backward=False)
    assert_identical({"output": not_saved.output, **not_saved.final}, {"output": saved.output, **saved.final})
    assert torch.equal(not_saved.gates.view(torch.int32), before.view(torch.int32))
    assert all(cells.isnan().all() for cells in not_saved.cells.values())


@pytest.mark.parametrize("path", CLUSTER)
@pytest.mark.parametrize("kind", CELLS)
def test_lengths_out_of_range_count_as_the_nearest_in_range(kernels: Kernels, kind: str, path: str) -> None:
    """On a GPU nobody checks the values of lengths, and no kernel reads or writes outside of its arrays for them."""
    lengths = (5, 9, -1, 3, 2**62, -(2**62), 0, 6, 1)
    results = []
    for given in (lengths, tuple(min(max(length, 0), 5) for length in lengths)):
        layer = Layer(kind, time=5, batch=9, hidden_size=20, lengths=given, directions=2)
        forward, backward = (plan_of(layer, backward, CLUSTER[path], units=16) for backward in (False, True))
        results.append(run(kernels, layer, forward, backward))
    assert_identical(*results)


def test_gates_are_saved_as_the_cell_has_them(kernels: Kernels) -> None:
    for kind in CELLS:
        layer = Layer(kind, time=1, batch=5, hidden_size=20)
        host = OnHost(kernels, layer)
        host.forward(plan_of(layer, False, False, units=16))
        gates, h0 = host.gates[0].double().chunk(layer.sums, dim=1), host.states[0][0].double()
        if kind == "LSTM":
            i, f, g, o = gates
            cell = f * host.states[1][0].double() + i * g
            torch.testing.assert_close(host.cells["cells"][0].double(), cell, rtol=1e-6, atol=1e-6)
            hidden = o * cell.tanh()
        elif kind.startswith("RNN"):
            (hidden,) = gates
        else:
            r, z, n, hn = gates
            product = h0 @ host.weight(0, 1)[40:].double().T + host.weight(0, 3)[40:].double()
            torch.testing.assert_close(hn, product, rtol=1e-5, atol=1e-6)
            assert (r > 0).all()
            hidden = (1 - z) * n + z * h0
        torch.testing.assert_close(host.output.double(), hidden, rtol=1e-6, atol=1e-6)


def test_a_plan_without_a_kernel_is_an_error(kernels: Kernels) -> None:
    layer = Layer("LSTM")
    plan = plan_of(layer, False, False, units=16)
    plan.row_tiles = 7
    with pytest.raises(RuntimeError, match="no kernel is built for this plan"):
        OnHost(kernels, layer).forward(plan)
