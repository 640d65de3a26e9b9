"""The kernels of every instruction set of this machine write the same, and nothing out of bounds."""

import platform
import subprocess
from itertools import pairwise

import pytest

from fused_rnn import _C
from instruction_sets.build import build

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only")
BUILT = _C.build_info()["cpu_capabilities"]
USABLE = BUILT[: BUILT.index(_C.build_info()["cpu_capability"]) + 1]
PAIRS = list(pairwise(USABLE))


def run(first: str, second: str, problems: int, sanitizers: str = "") -> None:
    program = build(first, second, sanitizers)
    done = subprocess.run([program, str(problems), "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{problems} problems, 0 differ" in done.stdout


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_same(first: str, second: str) -> None:
    run(first, second, 1000)


@pytest.mark.long
@pytest.mark.parametrize("name", USABLE)
def test_nothing_is_out_of_bounds(name: str) -> None:
    run(name, name, 400, "address,undefined")
