"""The kernels of every instruction set of this machine compute what plain loops do, and stay within arrays' bounds."""

import platform
import subprocess
from itertools import pairwise

import pytest

from fused_rnn import _C
from instruction_sets.build import PLAIN, build

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only")
BUILT = _C.build_info()["cpu_capabilities"]
USABLE = BUILT[: BUILT.index(_C.build_info()["cpu_capability"]) + 1]
NEIGHBOURS = list(pairwise(USABLE))
# The best instruction set for which the replacement of AVX512_BF16 can be compiled.
STAND_IN = USABLE[:2][-1]


def run(first: str, second: str, problems: int, sanitizers: str = "", stand_in: bool = False) -> None:
    program = build(first, second, sanitizers, stand_in=stand_in)
    pairs = stand_in or (second == "AVX512" and _C.build_info()["multiplies_pairs"])
    done = subprocess.run([program, str(problems), "1", *["pairs"] * pairs], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{problems} problems, 0 differ" in done.stdout


@pytest.mark.parametrize("name", USABLE)
def test_equal_to_plain_loops(name: str) -> None:
    """Where kernels are compared only with one another, a fault that all of them have would not be seen."""
    run(PLAIN, name, 400)


@pytest.mark.parametrize(("first", "second"), NEIGHBOURS)
def test_same(first: str, second: str) -> None:
    run(first, second, 1000)


def test_equal_to_plain_loops_in_pairs() -> None:
    run(PLAIN, STAND_IN, 600, stand_in=True)


@pytest.mark.long
@pytest.mark.parametrize("name", USABLE)
def test_nothing_is_out_of_bounds(name: str) -> None:
    run(name, name, 400, "address,undefined", stand_in=name == STAND_IN)
