"""FUSED_RNN_CUDA_ARCHS=native: setup.py builds for the GPUs that PyTorch or nvidia-smi report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Prints what setup.py would pass to nvcc, without building anything; the machine's real GPUs are hidden from it.
PRINT_ARCHITECTURES = """
import runpy, sys, torch

capabilities = {capabilities}
torch.cuda.is_available = lambda: bool(capabilities)
torch.cuda.device_count = lambda: len(capabilities)
torch.cuda.get_device_capability = lambda index: capabilities[index]
sys.argv = ["setup.py", "--quiet", "--name"]
setup = runpy.run_path("setup.py")
architectures = setup["cuda_architectures"]()
flags = [setup["gencode"](architectures, hopper) for hopper in (False, True)]
print(";".join(architectures), *flags, sep="\\n")
"""


def ask_setup(
    tmp_path: Path, nvidia_smi: str, seen_by_torch: list[tuple[int, int]] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run setup.py with a shell script as nvidia-smi, and with a CUDA toolkit of empty files."""
    toolkit, programs = tmp_path / "cuda", tmp_path / "bin"
    for file in (toolkit / "bin" / "nvcc", toolkit / "include" / "cuda_runtime.h"):
        file.parent.mkdir(parents=True)
        file.touch()
    programs.mkdir()
    program = programs / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    program.chmod(0o755)
    settings = {
        "FUSED_RNN_CUDA": "1",
        "FUSED_RNN_CUDA_ARCHS": "native",
        "CUDA_HOME": str(toolkit),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        [sys.executable, "-c", PRINT_ARCHITECTURES.format(capabilities=seen_by_torch or [])],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("capabilities", "architectures", "ptx"),
    [
        (["8.0"], "80", "80"),
        (["8.9"], "89", "89"),
        (["9.0"], "90a", "90"),
        (["9.0", "9.0"], "90a", "90"),
        (["12.0", "8.6"], "86;120", "120"),
    ],
)
def test_native_is_what_nvidia_smi_says(tmp_path: Path, capabilities: list[str], architectures: str, ptx: str) -> None:
    done = ask_setup(
        tmp_path,
        '[ "$*" = "--query-gpu=compute_cap --format=csv,noheader" ] || exit 1\n'
        + "\n".join(f"echo {capability}" for capability in capabilities),
    )
    assert not done.returncode, done.stderr
    named, *flags = done.stdout.splitlines()[-3:]
    assert named == architectures
    for gencode in flags:
        assert gencode.count("-gencode") == len(architectures.split(";")) + 1
        assert gencode.endswith(f"-gencode=arch=compute_{ptx},code=compute_{ptx}")
    # Only kernels for Hopper alone may have instructions that its successors lack.
    assert [("compute_90a" in gencode) for gencode in flags] == [False, "90a" in architectures]


def test_native_is_what_pytorch_says_where_it_sees_a_gpu(tmp_path: Path) -> None:
    done = ask_setup(tmp_path, "echo 8.0", seen_by_torch=[(9, 0)])
    assert done.stdout.splitlines()[-3] == "90a"


@pytest.mark.parametrize("answer", ["exit 9", "exit 0", "echo 'No devices were found'", "echo [N/A]"])
def test_native_without_a_gpu_is_an_error_that_says_so(tmp_path: Path, answer: str) -> None:
    done = ask_setup(tmp_path, answer)
    assert done.returncode == 1
    assert "there is no NVIDIA GPU on this machine" in done.stderr
    assert "Traceback" not in done.stderr
