"""The cases that are measured on a CPU and on a GPU, their exact numbers of operations, and the grids of cases.

A case says only what is computed; the modules of the peers compute it. The operations are those of the matrix products
or convolutions, two for each multiply-add. Unnecessary ones are not counted: masked taps, taps outside of the image,
and time steps after the end of a sequence. A forward and backward pass counts as three forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar, Literal

from fused_rnn.ops import CELLS

Kind = Literal["LSTM", "GRU", "RNN", "RNN_RELU"]
Form = Literal["sequence", "packed", "cell"]
Mode = Literal["forward", "training"]
Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Literal["bfloat16", "float16", "tf32", "float32"]

SECTIONS = ("lstm", "gru", "rnn", "cell", "packed", "half", "masked_conv2d")
MODE_TITLES: dict[Mode, str] = {"forward": "forward", "training": "forward + backward"}
BYTES_PER_FLOAT = 4
RESETS = (0.0, 0.001, 0.01, 0.1)
BYTES_PER_ELEMENT: dict[Dtype, int] = {"float32": BYTES_PER_FLOAT, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Layer:
    """The classes and the cell of one kind of layer.

    Attributes:
        name: The name of the layer's class in torch.nn and in fused_rnn; the cell's class has `Cell` appended.
        cell: The cell's name in csrc/cells.
        options: The arguments of both classes that select the cell.
    """

    name: str
    cell: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def gates(self) -> int:
        """The number of rows of each weight matrix for a hidden unit."""
        return CELLS[self.cell].gates

    @property
    def states(self) -> int:
        """The number of states of a hidden unit: h alone, or h and c."""
        return CELLS[self.cell].states


LAYERS: dict[Kind, Layer] = {
    "LSTM": Layer("LSTM", "lstm"),
    "GRU": Layer("GRU", "gru"),
    "RNN": Layer("RNN", "rnn_tanh", {"nonlinearity": "tanh"}),
    "RNN_RELU": Layer("RNN", "rnn_relu", {"nonlinearity": "relu"}),
}
# Only some grids include ReLU, since it takes as long as tanh where products dominate the time.
KINDS: tuple[Kind, ...] = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class RecurrentCase:
    """A recurrent layer on padded or packed sequences, or a loop over its cell."""

    kind: Kind
    time: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    form: Form = "sequence"
    dtype: Dtype = "float32"
    resets: float | None = None  # of all steps of all sequences, how many have their states replaced; None: no resets

    @property
    def layer(self) -> Layer:
        """The classes that compute the case, and the structure of their cell."""
        return LAYERS[self.kind]

    @property
    def section(self) -> str:
        """The part of the benchmark that `--only` selects."""
        if self.resets is not None:
            return "resets"
        if self.dtype != "float32":
            return "half"
        return self.layer.name.lower() if self.form == "sequence" else self.form

    @property
    def group(self) -> str:
        """The name of the group of cases that share a geometric mean; each dtype has its own group."""
        names = {"packed": f"packed {self.kind}", "cell": f"{self.kind}Cell loop", "sequence": self.kind}
        name = names[self.form]
        if self.form == "sequence" and self.time == self.batch == 1:
            name += " one step"
        if self.resets is not None:
            name += f", {100 * self.resets:g} % resets"
        return name if self.dtype == "float32" else f"{name} {self.dtype}"

    @property
    def label(self) -> str:
        """(time, batch, input_size, hidden_size), and all options that differ from the defaults."""
        extra = f", {self.num_layers} layers" if self.num_layers > 1 else ""
        extra += ", both directions" if self.bidirectional else ""
        extra += f", {self.dtype}" if self.dtype != "float32" else ""
        return f"({self.time}, {self.batch}, {self.input_size}, {self.hidden_size}){extra}"

    @property
    def directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of steps of each sequence, longest first: all `time`, or if packed evenly spread below it."""
        if self.form != "packed":
            return (self.time,) * self.batch
        return tuple(max(1, self.time * (self.batch - row) // self.batch) for row in range(self.batch))

    @property
    def layer_input_sizes(self) -> tuple[int, ...]:
        """The input size of each layer."""
        return (self.input_size,) + (self.directions * self.hidden_size,) * (self.num_layers - 1)

    def weight_elements(self) -> int:
        """The number of elements of all weight matrices."""
        columns = sum(size + self.hidden_size for size in self.layer_input_sizes)
        return self.directions * self.layer.gates * self.hidden_size * columns

    def operations(self, mode: Mode) -> int:
        """Additions and multiplications of all products: each row of each step is multiplied once by every weight."""
        return _scale(mode) * 2 * sum(self.lengths) * self.weight_elements()

    def bytes_read(self) -> int:
        """The size of the weights in bytes, which even a single step has to read."""
        return BYTES_PER_ELEMENT[self.dtype] * self.weight_elements()


@dataclass(frozen=True)
class GpuCase(RecurrentCase):
    """A layer with input_size equal to hidden_size; float32 products are rounded to tf32 if `tf32` is set."""

    tf32: bool = False

    @property
    def precision(self) -> Precision:
        """The precision of the products."""
        return "tf32" if self.tf32 else self.dtype

    @property
    def group(self) -> str:
        """The name of the group of cases that share a geometric mean; each precision and form has its own group."""
        words: list[str] = [self.kind, self.precision]
        words += ["both directions"] if self.bidirectional else []
        words += [f"{self.num_layers} layers"] if self.num_layers > 1 else []
        words += ["packed"] if self.form == "packed" else []
        words += [f"{100 * self.resets:g} % resets"] if self.resets is not None else []
        return " ".join(words)

    @property
    def label(self) -> str:
        """(time, batch, hidden_size)."""
        return f"({self.time}, {self.batch}, {self.hidden_size})"


@dataclass(frozen=True)
class ConvolutionCase:
    """A masked convolution over square images, with a square kernel and padding that keeps the image's size."""

    batch: int
    in_channels: int
    out_channels: int
    size: int
    kernel_size: int
    mask_type: Literal["A", "B"] = "B"
    data_channels: int = 1

    section = group = "masked_conv2d"
    dtype: ClassVar[Dtype] = "float32"

    @property
    def label(self) -> str:
        """(batch, in_channels, out_channels, size, kernel_size), the mask type, and the number of colours if any."""
        colours = f", {self.data_channels} colours" if self.data_channels > 1 else ""
        sizes = f"{self.batch}, {self.in_channels}, {self.out_channels}, {self.size}, {self.kernel_size}"
        return f"({sizes}) {self.mask_type}{colours}"

    def operations(self, mode: Mode) -> int:
        """Additions and multiplications of the taps that are neither masked nor outside of the image."""
        half = self.kernel_size // 2
        active = [(dy, dx) for dy in range(-half, 1) for dx in range(-half, half + 1) if dy < 0 or dx < 0]
        pixels = sum((self.size + dy) * (self.size - abs(dx)) for dy, dx in active)
        everywhere = pixels * self.in_channels * self.out_channels
        centre = self.size * self.size * self._centre_pairs()
        return _scale(mode) * 2 * self.batch * (everywhere + centre)

    def _centre_pairs(self) -> int:
        """The number of pairs of an input and an output channel that the mask allows at the centre."""
        colours = self.data_channels
        inputs = [channel * colours // self.in_channels for channel in range(self.in_channels)]
        outputs = [channel * colours // self.out_channels for channel in range(self.out_channels)]
        last = 0 if self.mask_type == "B" else 1  # type A excludes a pixel's own colour
        return sum(source + last <= target for source in inputs for target in outputs)

    def bytes_read(self) -> int:
        """The size of the input images in bytes, all of which have to be read."""
        return BYTES_PER_FLOAT * self.batch * self.in_channels * self.size * self.size


Case = RecurrentCase | ConvolutionCase


def _scale(mode: Mode) -> int:
    return 3 if mode == "training" else 1


# The grids on a CPU.


def _recurrent(
    shapes: Sequence[tuple[int, ...]],
    form: Form = "sequence",
    dtype: Dtype = "float32",
    kinds: Sequence[Kind] = KINDS,
) -> list[Case]:
    """All combinations of kinds and shapes (time, batch, input, hidden[, layers[, directions]])."""
    cases: list[Case] = []
    for kind in kinds:
        for time, batch, input_size, hidden_size, *rest in shapes:
            num_layers, directions = (*rest, 1, 1)[:2]
            sizes = (time, batch, input_size, hidden_size, num_layers)
            cases.append(RecurrentCase(kind, *sizes, bidirectional=directions == 2, form=form, dtype=dtype))
    return cases


def quick_grid() -> list[Case]:
    """A few cases of every group, which are checked and timed in less than four minutes on two cores."""
    sequences = [(1, 1, 1024, 1024), (100, 8, 7, 33), (60, 17, 100, 300), (100, 32, 256, 256)]
    return [
        *_recurrent([*sequences, (35, 20, 650, 650, 2)], kinds=("LSTM", "GRU")),
        *_recurrent(sequences, kinds=("RNN",)),
        *_recurrent([(100, 32, 256, 256)], kinds=("RNN_RELU",)),
        *_recurrent([(50, 32, 256, 256)], "cell"),
        *_recurrent([(100, 32, 256, 256)], "packed"),
        *_recurrent([(60, 17, 100, 300)], dtype="bfloat16"),
        *_recurrent([(20, 8, 64, 128)], dtype="float16"),
        ConvolutionCase(16, 1, 64, 28, 7, "A"),
        ConvolutionCase(1, 64, 64, 28, 3),
        ConvolutionCase(16, 64, 64, 28, 7),
        ConvolutionCase(16, 128, 128, 28, 3),
    ]


def full_grid() -> list[Case]:
    """Cases from single steps to sizes that fill the machine, with odd sizes in between."""
    single_steps = [(1, 1, size, size) for size in (64, 256, 512, 1024)]
    sequences = [
        (1, 32, 512, 512),
        (100, 1, 256, 256),
        (100, 8, 7, 33),
        (1000, 8, 64, 64),
        (60, 17, 100, 300),
        (100, 32, 256, 256),
        (100, 64, 512, 512),
        (200, 16, 128, 1024),
        (35, 20, 650, 650, 2),
        (100, 32, 256, 256, 2, 2),
    ]
    return [
        *_recurrent(single_steps + sequences, kinds=tuple(LAYERS)),
        *_recurrent([(100, 1, 64, 64), (60, 17, 100, 300), (50, 32, 256, 256), (50, 64, 512, 512)], "cell"),
        *_recurrent([(60, 17, 100, 300), (100, 32, 256, 256), (100, 64, 512, 512), (35, 20, 650, 650, 2)], "packed"),
        *_recurrent([(100, 32, 256, 256), (50, 64, 512, 512), (60, 17, 100, 300), (1, 1, 512, 512)], dtype="bfloat16"),
        *_recurrent([(20, 8, 64, 128), (20, 17, 100, 300)], dtype="float16"),
        ConvolutionCase(16, 1, 64, 28, 7, "A"),
        ConvolutionCase(16, 3, 96, 32, 5, "A", data_channels=3),
        ConvolutionCase(1, 64, 64, 28, 3),
        ConvolutionCase(16, 32, 32, 28, 3),
        ConvolutionCase(64, 64, 64, 28, 3),
        ConvolutionCase(16, 64, 64, 28, 5),
        ConvolutionCase(16, 64, 64, 28, 7),
        ConvolutionCase(16, 128, 128, 28, 3),
        ConvolutionCase(4, 192, 384, 16, 5, "A"),
        ConvolutionCase(4, 96, 192, 32, 3, "B", data_channels=3),
    ]


# The grids on a GPU.

PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float16", "tf32", "float32")
TIMES = (128, 256, 512, 1024)
BATCHES = (1, 16, 32, 64, 128)
HIDDEN_SIZES = (128, 256, 384, 512, 768, 1024, 1536, 2048)
# (time, batch, hidden_size) for which the authors of FlashRNN published times.
PUBLISHED_SHAPE = (1024, 16, 768)


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
    resets: float | None = None,
) -> GpuCase:
    """Make a case from a precision instead of a dtype."""
    dtype: Dtype = "float32" if precision == "tf32" else precision
    sizes = (time, batch, hidden, hidden, num_layers)
    return GpuCase(kind, *sizes, bidirectional, form, dtype, resets, tf32=precision == "tf32")


def gpu_grid() -> list[GpuCase]:
    """The most important cases, in that order: 200 s for LSTM and GRU on an H200, 40 s for the RNN; then resets."""
    cases = [gpu_case("LSTM", "float16", *PUBLISHED_SHAPE)]
    gated: tuple[Kind, ...] = ("LSTM", "GRU")
    for kind in gated:
        cases += [gpu_case(kind, "bfloat16", *PUBLISHED_SHAPE)]
        cases += [gpu_case(kind, "bfloat16", 256, batch, hidden) for batch in (16, 128) for hidden in HIDDEN_SIZES]
    for precision, kind in product(PRECISIONS[1:], gated):
        cases += [gpu_case(kind, precision, 256, 32, hidden) for hidden in (256, 512, 1024, 2048)]
    for kind in gated:
        cases += [gpu_case(kind, "bfloat16", 256, batch, 512) for batch in (1, 32, 64)]
        cases += [gpu_case(kind, "bfloat16", time, 32, 512) for time in (128, 512, 1024)]
        cases += _gpu_forms(kind)
    cases += [gpu_case("RNN", "bfloat16", *PUBLISHED_SHAPE)]
    cases += [gpu_case("RNN", "bfloat16", 256, batch, hidden) for batch in (16, 128) for hidden in (512, 2048)]
    cases += [gpu_case("RNN", precision, 256, 32, hidden) for precision in PRECISIONS[1:] for hidden in (512, 2048)]
    cases += [*_gpu_forms("RNN"), gpu_case("RNN_RELU", "bfloat16", 256, 32, 512)]
    for kind, precision, resets in product(gated, PRECISIONS[::2], RESETS):
        cases += [gpu_case(kind, precision, 128, 256, 256, resets=resets)]
    return cases


def _gpu_forms(kind: Kind) -> list[GpuCase]:
    """Cases with both directions, several layers and packed sequences."""
    sizes = (256, 32, 512)
    return [
        gpu_case(kind, "bfloat16", *sizes, bidirectional=True),
        gpu_case(kind, "bfloat16", *sizes, num_layers=3),
        gpu_case(kind, "bfloat16", *sizes, form="packed"),
        gpu_case(kind, "bfloat16", *sizes, num_layers=2, bidirectional=True, form="packed"),
    ]


def gpu_product_grid(
    kinds: Sequence[Kind] = tuple(LAYERS),
    precisions: Sequence[Precision] = PRECISIONS,
    times: Sequence[int] = TIMES,
    batches: Sequence[int] = BATCHES,
    hidden_sizes: Sequence[int] = HIDDEN_SIZES,
) -> list[GpuCase]:
    """All combinations of the arguments; by default 2560 cases, which take more than two hours."""
    return [gpu_case(*values) for values in product(kinds, precisions, times, batches, hidden_sizes)]
