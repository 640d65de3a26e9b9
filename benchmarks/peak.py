"""The machine's limits, measured in the same run: the best rate of a large product or convolution, and of reading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn.functional import conv2d

from benchmarks.cases import BYTES_PER_FLOAT, Case, Dtype, Mode
from benchmarks.timing import time_together

MATRIX_SIZE = 2048
IMAGES, CHANNELS, IMAGE_SIZE = 16, 256, 30
SMALLEST_READ = 2**20  # bytes; a smaller one would measure the cost of a call
SECONDS_EACH = 1.0


@dataclass
class Peak:
    """What this machine can do at its current number of threads.

    Attributes:
        gflops: Operations per nanosecond of each large product or convolution, by name, the best of its rounds.
        half_gflops: The same of a product in half precision, by dtype, where the processor has instructions for it.
        gigabytes: Bytes per nanosecond of reading once a buffer that was read just before, by the buffer's bytes.
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
    """Time a channels_last 3x3 convolution without borders and a matrix product, in MKL and in oneDNN."""
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
    """The dtypes that the processor multiplies as they are; elsewhere such a product takes seconds."""
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
