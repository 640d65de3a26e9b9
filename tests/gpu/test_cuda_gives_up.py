"""A kernel on a GPU that waits for a value which never comes ends by itself, and says so."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from planting import Edit, edited

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
HANDOVER = "cuda/persistent/handover.cuh"
EDITS: list[Edit] = [
    # Fewer kernels to compile.
    ("cuda/persistent/plan.h", "row_tiles * batch_tiles > 16", "chunks_in_registers > 0 || row_tiles != 2"),
    (HANDOVER, "kMostWait = 30'000'000'000", "kMostWait = 300'000'000"),
    (HANDOVER, "{ store_fresh(to, message.words); }", "{ if (blockIdx.x > 0) store_fresh(to, message.words); }"),
    (HANDOVER, "for (int rank = 0; rank < plan_.blocks;", "for (int rank = 1; rank < plan_.blocks;"),
]


def build(folder: Path, architecture: str) -> Path:
    """Build the program from a copy of csrc/ with the edits, or skip the test."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    for part in ("cuda", "cells", "params"):
        for path in (CSRC / part).rglob("*.*h"):
            name = path.relative_to(CSRC).as_posix()
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(edited(name, path.read_text(), EDITS))
    program = folder / "give_up"
    sources = [HERE / "give_up.cu", CSRC / "cuda" / "kit" / "launch.cu"]
    command = [
        nvcc,
        "-std=c++20",
        "--expt-relaxed-constexpr",
        f"-arch={architecture}",
        f"-I{folder}",
        *map(str, sources),
        "-o",
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return program


def test_the_program_builds(tmp_path: Path) -> None:
    """Without a GPU, so that the test below fails for its own reasons alone."""
    build(tmp_path, "sm_90a")


@pytest.mark.needs_cuda
@pytest.mark.parametrize("path", ["grid", "cluster"])
def test_a_kernel_gives_up(tmp_path: Path, path: str) -> None:
    major, minor = torch.cuda.get_device_capability()
    if path == "cluster" and major < 9:
        pytest.skip("the GPU has no clusters")
    program = build(tmp_path, f"sm_{major}{minor}{'a' if (major, minor) == (9, 0) else ''}")
    start = time.monotonic()
    done = subprocess.run([str(program), path], capture_output=True, text=True, timeout=60)
    assert time.monotonic() - start < 20
    assert "has waited 30 seconds for a value of another one" in done.stdout + done.stderr
    assert "ended: device-side assert triggered" in done.stdout
