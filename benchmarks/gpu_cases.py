"""What is measured on a GPU: the grid that fits into ten minutes with build and tests, and the full one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from benchmarks.cases import GATES, Dtype, Form, Kind, RecurrentCase

Precision = Literal["bfloat16", "float16", "tf32", "float32"]

PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float16", "tf32", "float32")
TIMES = (128, 256, 512, 1024)
BATCHES = (1, 16, 32, 64, 128)
HIDDEN_SIZES = (128, 256, 384, 512, 768, 1024, 1536, 2048)
# The shape of the figures that others have published.
PUBLISHED_SHAPE = (1024, 16, 768)


@dataclass(frozen=True)
class GpuCase(RecurrentCase):
    """A layer as wide as its input; `dtype` float32 is computed with tf32 or exactly."""

    tf32: bool = False

    @property
    def precision(self) -> Precision:
        """What products are computed in."""
        return "tf32" if self.tf32 else self.dtype

    @property
    def group(self) -> str:
        """The cases over which one geometric mean is taken; each precision and form has its own."""
        words: list[str] = [self.kind, self.precision]
        words += ["both directions"] if self.bidirectional else []
        words += [f"{self.num_layers} layers"] if self.num_layers > 1 else []
        words += ["packed"] if self.form == "packed" else []
        return " ".join(words)

    @property
    def label(self) -> str:
        """(time, batch, hidden_size)."""
        return f"({self.time}, {self.batch}, {self.hidden_size})"


def gpu_case(
    kind: Kind,
    precision: Precision,
    time: int,
    batch: int,
    hidden: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    form: Form = "sequence",
) -> GpuCase:
    """A case from what a user would say of it."""
    dtype: Dtype = "float32" if precision == "tf32" else precision
    return GpuCase(
        kind, time, batch, hidden, hidden, num_layers, bidirectional, form, dtype, tf32=precision == "tf32"
    )  # fmt: skip


def default_grid() -> list[GpuCase]:
    """What matters most, and that first: some 200 s, estimated from the times that torch.nn took on an H200."""
    cases = [gpu_case("LSTM", "float16", *PUBLISHED_SHAPE)]
    for kind in GATES:
        cases += [gpu_case(kind, "bfloat16", *PUBLISHED_SHAPE)]
        cases += [gpu_case(kind, "bfloat16", 256, batch, hidden) for batch in (16, 128) for hidden in HIDDEN_SIZES]
    for precision, kind in product(PRECISIONS[1:], GATES):
        cases += [gpu_case(kind, precision, 256, 32, hidden) for hidden in (256, 512, 1024, 2048)]
    for kind in GATES:
        sizes = (256, 32, 512)
        cases += [gpu_case(kind, "bfloat16", 256, batch, 512) for batch in (1, 32, 64)]
        cases += [gpu_case(kind, "bfloat16", time, 32, 512) for time in (128, 512, 1024)]
        cases += [
            gpu_case(kind, "bfloat16", *sizes, bidirectional=True),
            gpu_case(kind, "bfloat16", *sizes, num_layers=3),
            gpu_case(kind, "bfloat16", *sizes, form="packed"),
            gpu_case(kind, "bfloat16", *sizes, num_layers=2, bidirectional=True, form="packed"),
        ]
    return cases


def product_grid(
    kinds: Sequence[Kind] = tuple(GATES),
    precisions: Sequence[Precision] = PRECISIONS,
    times: Sequence[int] = TIMES,
    batches: Sequence[int] = BATCHES,
    hidden_sizes: Sequence[int] = HIDDEN_SIZES,
) -> list[GpuCase]:
    """All combinations; of everything, 1280 cases: more than an hour."""
    return [gpu_case(*values) for values in product(kinds, precisions, times, batches, hidden_sizes)]
