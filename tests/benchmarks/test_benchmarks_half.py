"""The benchmarks' cases in half precision: their peers, and whether the check finds a wrong result."""

from dataclasses import replace

import pytest
import torch
from spoiling import spoil

from benchmarks.cases import KINDS, Dtype, Kind, Mode, RecurrentCase, full_grid, quick_grid
from benchmarks.machine import Peak
from benchmarks.problem import CheckError, check
from benchmarks.recurrent_peers import recurrent_problem

MODES: tuple[Mode, ...] = ("forward", "training")
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float16")


def small_case(kind: Kind, dtype: Dtype) -> RecurrentCase:
    return RecurrentCase(kind, 4, 3, 5, 6, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_grids_have_every_kind_in_every_dtype(dtype: Dtype) -> None:
    for grid in (quick_grid(), full_grid()):
        half = [case for case in grid if case.section == "half" and case.dtype == dtype]
        assert {case.group for case in half} >= {f"{kind} {dtype}" for kind in KINDS}
        assert all(case.label.endswith(f", {dtype}") for case in half)


def test_a_case_names_its_dtype_and_counts_its_bytes() -> None:
    case = RecurrentCase("GRU", 1, 1, 5, 6, dtype="float16")
    assert (case.section, case.group, case.label) == ("half", "GRU one step float16", "(1, 1, 5, 6), float16")
    assert case.bytes_read() == 2 * 3 * 6 * (5 + 6)
    assert replace(case, form="packed", dtype="bfloat16").group == "packed GRU bfloat16"
    single = replace(case, dtype="float32")
    assert (single.section, single.group, single.label) == ("gru", "GRU one step", "(1, 1, 5, 6)")
    assert single.bytes_read() == 2 * case.bytes_read()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_every_peer_computes_in_its_dtype_and_agrees_with_the_reference(kind: Kind, dtype: Dtype, mode: Mode) -> None:
    problem = recurrent_problem(small_case(kind, dtype), compiled=True)
    assert [peer.name for peer in problem.peers] == ["fused", "torch.nn", "torch.nn cells"]
    for peer in problem.peers:
        assert {tensor.dtype for tensor in peer.run_once(mode)} == {getattr(torch, dtype)}
    assert {tensor.dtype for tensor in problem.oracle.run_once(mode)} == {torch.float64}
    check(small_case(kind, dtype), problem, mode)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [20, float("nan")])
def test_check_finds_one_wrong_value_in_any_tensor(kind: Kind, dtype: Dtype, mode: Mode, steps: float) -> None:
    case = small_case(kind, dtype)
    problem = recurrent_problem(case)
    error = steps * torch.finfo(getattr(torch, dtype)).eps
    for index, peer in enumerate(problem.peers):
        for tensor, name in enumerate(problem.names(mode)):
            peers = [*problem.peers[:index], spoil(peer, tensor, error), *problem.peers[index + 1 :]]
            with pytest.raises(CheckError, match=f"{name} of {peer.name} is"):
                check(case, replace(problem, peers=peers), mode)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ours_is_held_to_twice_the_error_of_torch(kind: Kind, dtype: Dtype) -> None:
    """If torch.nn's result is exact, an error that other peers may have is too large for ours."""
    case = small_case(kind, dtype)
    problem = recurrent_problem(case)
    ours, _, cells = problem.peers
    exact = replace(problem.oracle, name="torch.nn")
    error = 4 * torch.finfo(getattr(torch, dtype)).eps
    check(case, replace(problem, peers=[ours, exact, spoil(cells, 0, error)]), "forward")
    with pytest.raises(CheckError, match="output of fused"):
        check(case, replace(problem, peers=[spoil(ours, 0, error), exact, cells]), "forward")


def test_a_faster_product_in_half_precision_lowers_the_limit_of_its_dtype_alone() -> None:
    peak = Peak({"product": 100.0}, {"bfloat16": 200.0}, {2**20: 1e9})
    single, bfloat16, float16 = (
        peak.limit_seconds(RecurrentCase("LSTM", 4, 3, 5, 6, dtype=dtype), "forward") for dtype in ("float32", *DTYPES)
    )
    assert single == pytest.approx(float16) == pytest.approx(2 * bfloat16)
