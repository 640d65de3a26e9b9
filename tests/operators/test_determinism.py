"""Results are the same bit for bit in every run, for any number of threads; and the tests of every instruction set.

Equal bits alone would not show a fault that all runs share, so each result is also compared with torch.nn.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import DTYPES, KINDS, Case, check_result, hx_of, structure_of
from comparing import assert_identical

import fused_rnn
from fused_rnn import _C

MARKERS = "instruction_sets and not needs_cuda"
CAPABILITIES = ["default", "avx2", "avx512"]


def cases(kind: str) -> list[Case]:
    return [
        Case(kind, 7, 33, 20, 100),
        Case(kind, 1, 1, 257, 257),
        # Here threads divide the hidden units of a step whose rows are columns of the product.
        Case(kind, 1, 40, 64, 130, bidirectional=True),
        Case(kind, 3, 257, 40, 15),
        Case(kind, 40, 1, 9, 130, bidirectional=True),
        Case(kind, 9, 6, 31, 65, num_layers=2, bidirectional=True, lengths=(9, 2, 7, 1, 1, 5)),
        Case(kind, 9, 16, 48, 48, bias=False, proj_size=33 if structure_of(kind).may_project else 0),
        # Here threads divide the hidden units of a batch, so they synchronise after each step.
        Case(kind, 30, 5, 40, 300),
        # Here threads divide the columns of a weight gradient, each of which has a bias gradient only once: that of the
        # input, with more rows than one block, and that of the hidden values, with few.
        Case(kind, 20, 16, 300, 20),
        Case(kind, 3, 2, 5, 300),
        Case(kind, 12, 6, 31, 70, lengths=(12, 2, 7, 1, 1, 5), proj_size=33 if structure_of(kind).may_project else 0),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for kind in KINDS for case in cases(kind)], ids=str)
def test_same_bits_twice_and_on_any_number_of_threads(case: Case, dtype: torch.dtype, device: str) -> None:
    once = case.result(fused_rnn, dtype, device)
    check_result(once, case, dtype, device)
    assert_identical(case.result(fused_rnn, dtype, device), once)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_identical(case.result(fused_rnn, dtype, device), once)


@pytest.mark.parametrize("kind", KINDS)
def test_two_callers_at_once(kind: str, device: str) -> None:
    case = Case(kind, 20, 9, 16, 33, bidirectional=True)
    alone = case.result(fused_rnn, torch.float32, device)
    check_result(alone, case, torch.float32, device)
    module, tensors = case.module(fused_rnn, torch.float32, device), case.tensors(torch.float32, device)

    def call(_: int) -> torch.Tensor:
        with torch.no_grad():
            return module(tensors[0], hx_of(tensors[1]))[0]

    with ThreadPoolExecutor(4) as pool:
        for output in pool.map(call, range(40)):
            assert torch.equal(output.cpu(), alone["out0"])


@pytest.mark.instruction_sets
def test_chosen_instruction_set_is_the_one_asked_for() -> None:
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    chosen = _C.build_info()["cpu_capability"]
    assert chosen == (asked.upper() if asked else torch.backends.cpu.get_cpu_capability())


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_instruction_sets(capability: str) -> None:
    built = [name.lower() for name in _C.build_info()["cpu_capabilities"]]
    best = torch.backends.cpu.get_cpu_capability().lower()
    if capability == _C.build_info()["cpu_capability"].lower():
        pytest.skip(f"the tests of this process run with {capability}")
    if capability not in built or CAPABILITIES.index(capability) > CAPABILITIES.index(best):
        pytest.skip(f"{capability} is not built, or is not on this machine")
    command = [sys.executable, "-m", "pytest", "-q", "-m", MARKERS, "-p", "no:cacheprovider", "tests/operators"]
    run = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
