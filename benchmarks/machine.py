"""The machine: its processor or GPU, versions and commit, and the measured rates that limit any program on it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.nn.functional import conv2d

import fused_rnn
from benchmarks.cases import BYTES_PER_FLOAT, Case, Dtype, Mode
from benchmarks.timing import time_together

OPTIONAL_PACKAGES = ("numpy", "onnx", "onnxruntime")
CLOCKS = "clocks.sm,clocks.mem"
NOT_KNOWN = "not known"

MATRIX_SIZE = 2048
IMAGES, CHANNELS, IMAGE_SIZE = 16, 256, 30
SMALLEST_READ = 2**20  # bytes; a smaller one would measure the cost of a call
SECONDS_EACH = 1.0


def describe_machine() -> dict[str, str | int]:
    """The processor, its cores, the threads in use, versions, the commit and the time, ready for JSON."""
    description: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fused_rnn": fused_rnn.__version__,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    for package in OPTIONAL_PACKAGES:
        try:
            description[package] = version(package)
        except PackageNotFoundError:
            description[package] = "not installed"
    return description


def machine_name(description: dict[str, str | int]) -> str:
    """A file name for the machine and how it was used, such as `amd-epyc-avx2-2-threads`."""
    return _file_name("{processor} {instruction_set} {threads} threads".format(**description))


def describe_gpu() -> dict[str, str | int]:
    """The same as `describe_machine`, with the GPU as processor; to be called before anything runs on the GPU."""
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


def gpu_name(description: dict[str, str | int]) -> str:
    """A file name for the GPU, such as `nvidia-h200`."""
    return _file_name(str(description["processor"]))


def ask_nvidia_smi(fields: str) -> str:
    """The fields as nvidia-smi reports them for the first GPU, or `NOT_KNOWN` if it reports none."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return NOT_KNOWN
    return lines[0].strip() if lines else NOT_KNOWN


def clocks_under_load(function: Callable[[], object], wait: Callable[[], object], seconds: float = 0.3) -> str:
    """The clocks of the busy GPU: nvidia-smi is called while about `seconds` of work are queued."""
    start = time.perf_counter()
    function()
    wait()
    calls = int(seconds / max(time.perf_counter() - start, 1e-4)) + 1
    for _ in range(calls):
        function()
    clocks = ask_nvidia_smi(CLOCKS)
    wait()
    return clocks


@dataclass
class Peak:
    """The highest rates measured on this machine with its current number of threads.

    Attributes:
        gflops: Operations per nanosecond of each large product or convolution, by name, the best of its rounds.
        half_gflops: The same of a product in half precision, by dtype, where the processor has instructions for it.
        gigabytes: Bytes per nanosecond of reading a buffer that was read just before, by the buffer's size in bytes.
    """

    gflops: dict[str, float] = field(default_factory=dict)
    half_gflops: dict[Dtype, float] = field(default_factory=dict)
    gigabytes: dict[int, float] = field(default_factory=dict)

    def limit_seconds(self, case: Case, mode: Mode) -> float:
        """The least time that `case` could take: its operations at the best rate, or reading its data once."""
        rates = [*self.gflops.values(), *(rate for dtype, rate in self.half_gflops.items() if dtype == case.dtype)]
        computing = case.operations(mode) / max(rates)
        reading = case.bytes_read() / self._read_rate(case.bytes_read())
        return 1e-9 * max(computing, reading)

    def _read_rate(self, size: int) -> float:
        size = max(size, SMALLEST_READ)
        if size not in self.gigabytes:
            self.gigabytes[size] = _measure_reading(size)
        return self.gigabytes[size]


@torch.no_grad()
def measure_peak() -> Peak:
    """Time a matrix product in MKL and in oneDNN, and a channels_last 3x3 convolution without borders."""
    a, b = torch.randn(MATRIX_SIZE, MATRIX_SIZE), torch.randn(MATRIX_SIZE, MATRIX_SIZE)
    images = torch.randn(IMAGES, CHANNELS, IMAGE_SIZE, IMAGE_SIZE).to(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).to(memory_format=torch.channels_last)
    product = 2 * MATRIX_SIZE**3
    convolution = 2 * IMAGES * (IMAGE_SIZE - 2) ** 2 * 9 * CHANNELS**2
    functions: dict[str, tuple[Callable[[], object], int]] = {
        "convolution": (lambda: conv2d(images, weight), convolution),
        "product": (lambda: a @ b, product),
    }
    if torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise
        functions["oneDNN product"] = (lambda: linear(a, b, None, "none", [], ""), product)
    for dtype in _half_dtypes():
        halves = [matrix.to(getattr(torch, dtype)) for matrix in (a, b)]
        functions[dtype] = (partial(torch.matmul, *halves), product)
    times = time_together({name: function for name, (function, _) in functions.items()}, SECONDS_EACH * len(functions))
    rates = {name: 1e-9 * operations / min(times[name]) for name, (_, operations) in functions.items()}
    half = {dtype: rates.pop(dtype) for dtype in _half_dtypes()}
    return Peak(rates, half)


def _half_dtypes() -> list[Dtype]:
    """The half-precision dtypes that the processor has instructions for; without them a product takes seconds."""
    dtypes: list[Dtype] = []
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        dtypes.append("bfloat16")
    if torch.cpu._is_amx_fp16_supported():
        dtypes.append("float16")
    return dtypes


@torch.no_grad()
def _measure_reading(size: int) -> float:
    matrix = torch.ones(max(1, size // (BYTES_PER_FLOAT * 1024)), 1024)
    vector = torch.ones(1024)
    times = time_together({"sum": matrix.sum, "product": lambda: matrix @ vector}, 0.2)
    return 1e-9 * matrix.nbytes / min(min(samples) for samples in times.values())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of this checkout, `-dirty` if files were changed since, or `unknown` outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
