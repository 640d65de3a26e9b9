"""The pointwise kernels of csrc/cuda/ on the CPU, between products by torch, against the reference."""

from typing import Any

import pytest
import torch
from cases import CELLS
from comparing import assert_all_accurate, assert_identical, assert_same_noise

from cuda_on_host import stepwise
from cuda_on_host.host import OnHost
from cuda_on_host.layer import Layer, by_reference, peer_of
from cuda_on_host.structs import Kernels

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FORMS: list[dict[str, Any]] = [
    {},
    {"time": 1, "batch": 1, "hidden_size": 3},
    {"batch": 40, "hidden_size": 13, "bias": False},
    {"time": 4, "batch": 6, "lengths": (2, 0, 4, 1, 4, 3), "unused": ("h_n",)},
    {"time": 4, "batch": 11, "batch_sizes": (11, 9, 8, 1), "unused": ("output",)},
    {"nan": True, "lengths": (2, 3, 0)},
]


def case(kind: str, dtype: torch.dtype, form: dict[str, Any]) -> Layer:
    return Layer(kind, dtype, **{"hidden_size": 7, "directions": 2, **form})


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_pointwise(kernels: Kernels, kind: str, dtype: torch.dtype, form: dict[str, Any]) -> None:
    layer = case(kind, dtype, form)
    host = OnHost(kernels, layer)
    stepwise.forward(host)
    stepwise.backward(host)
    assert_all_accurate(host.result(), by_reference(layer, torch.float64), peer_of(layer))


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_no_rounding_too_many(kernels: Kernels, kind: str, dtype: torch.dtype) -> None:
    layer = case(kind, dtype, {"time": 40, "batch": 20, "hidden_size": 40})
    host = OnHost(kernels, layer)
    stepwise.forward(host)
    stepwise.backward(host)
    exact = by_reference(layer, torch.float64)
    assert_all_accurate(host.result(), exact, peer_of(layer))
    assert_same_noise(host.result(), exact, peer_of(layer))


@pytest.mark.parametrize("kind", CELLS)
def test_nothing_saved(kernels: Kernels, kind: str) -> None:
    saved, not_saved = (OnHost(kernels, case(kind, torch.float32, FORMS[3])) for _ in range(2))
    before = not_saved.gates.clone()
    stepwise.forward(saved)
    stepwise.forward(not_saved, save_for_backward=False)
    assert_identical({"output": not_saved.output, **not_saved.final}, {"output": saved.output, **saved.final})
    assert torch.equal(not_saved.gates.view(torch.int32), before.view(torch.int32))
    assert all(cells.isnan().all() for cells in not_saved.cells.values())
