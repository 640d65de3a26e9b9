"""Prints the architecture of this machine's GPU as `FUSED_RNN_CUDA_ARCHS` takes it.

`python benchmarks/architecture.py` runs before the package is built, so it imports nothing of it.
"""

from __future__ import annotations

import subprocess
import sys

QUERY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
HOPPER = (9, 0)


def architecture(capability: tuple[int, int]) -> str:
    """The architecture of a compute capability, such as `80`; Hopper's with its own instructions, `90a`."""
    return f"{capability[0]}{capability[1]}{'a' if capability == HOPPER else ''}"


def capability_of_gpu() -> tuple[int, int] | None:
    """The compute capability of the first GPU, or None where neither nvidia-smi nor PyTorch sees one."""
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=True).stdout
        major, minor = answer.splitlines()[0].strip().split(".")
        return int(major), int(minor)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        import torch

        return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


if __name__ == "__main__":
    found = capability_of_gpu()
    if found is None:
        sys.exit("There is no NVIDIA GPU on this machine: neither nvidia-smi nor PyTorch sees one.")
    print(architecture(found))
