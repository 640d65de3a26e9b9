"""When memory ends, a call raises what torch raises, and the next call works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from little_memory import ENVIRONMENT

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited as Linux does it")
def test_every_failed_allocation_raises() -> None:
    run = subprocess.run(
        [sys.executable, str(SUPPORT / "little_memory.py")],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(SUPPORT.parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # Without gradients, small layers in half precision may find all they need in memory that was freed before.
    inference, training = (
        [int(count) for count in re.findall(rf"{mode}: (\d+)$", run.stdout, re.MULTILINE)]
        for mode in ("inference", "training")
    )
    assert len(inference) == len(training) == 40
    assert sum(inference) > 40
    assert all(training)
