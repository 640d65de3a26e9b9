"""The GPU, its driver and its clocks, as far as nvidia-smi and PyTorch tell."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable

import torch

from benchmarks.machine import describe_machine

CLOCKS = "clocks.sm,clocks.mem"
NOT_KNOWN = "not known"


def ask_nvidia_smi(fields: str) -> str:
    """What nvidia-smi says of the first GPU, or `NOT_KNOWN` where there is none or it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return NOT_KNOWN
    return lines[0].strip() if lines else NOT_KNOWN


def describe_gpu() -> dict[str, str | int]:
    """What `describe_machine` says, with the GPU as the processor; asked before anything runs on it."""
    host = describe_machine()
    before = {"driver": ask_nvidia_smi("driver_version"), "clocks before": ask_nvidia_smi(CLOCKS)}
    major, minor = torch.cuda.get_device_capability()
    return {
        **host,
        "processor": torch.cuda.get_device_name(),
        "instruction_set": f"sm_{major}{minor}",
        "host": host["processor"],
        **before,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def file_name(machine: dict[str, str | int]) -> str:
    """A file name for the GPU, such as `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", str(machine["processor"]).lower()).strip("-")


def clocks_under_load(function: Callable[[], object], wait: Callable[[], object], seconds: float = 0.3) -> str:
    """The clocks while the GPU calculates: nvidia-smi is asked with so much work waiting."""
    start = time.perf_counter()
    function()
    wait()
    calls = int(seconds / max(time.perf_counter() - start, 1e-4)) + 1
    for _ in range(calls):
        function()
    clocks = ask_nvidia_smi(CLOCKS)
    wait()
    return clocks
