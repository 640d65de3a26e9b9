"""What is measured: the cases, their exact numbers of operations, and the quick and the full grid.

A case says nothing about who computes it (that is `peers.py`). Operations are those of the products alone, two for each
multiply-add; taps that are masked, that hang over the image's border, and time steps past a sequence's end do no work
that anybody needs, so they are not counted. A forward and backward pass counts three times the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Kind = Literal["LSTM", "GRU"]
Form = Literal["sequence", "packed", "cell"]
Mode = Literal["forward", "training"]
Dtype = Literal["float32", "bfloat16", "float16"]

SECTIONS = ("lstm", "gru", "cell", "packed", "half", "masked_conv2d")
GATES: dict[Kind, int] = {"LSTM": 4, "GRU": 3}
MODE_TITLES: dict[Mode, str] = {"forward": "forward", "training": "forward + backward"}
BYTES_PER_FLOAT = 4
BYTES_PER_ELEMENT: dict[Dtype, int] = {"float32": BYTES_PER_FLOAT, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class RecurrentCase:
    """An LSTM or a GRU: a whole sequence, a packed (ragged) one, or a loop over its cell; all tensors in `dtype`."""

    kind: Kind
    time: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    form: Form = "sequence"
    dtype: Dtype = "float32"

    @property
    def section(self) -> str:
        """The part of the benchmark that `--only` chooses by."""
        if self.dtype != "float32":
            return "half"
        return self.kind.lower() if self.form == "sequence" else self.form

    @property
    def group(self) -> str:
        """The cases over which one geometric mean is taken; each dtype has its own."""
        names = {"packed": f"packed {self.kind}", "cell": f"{self.kind}Cell loop", "sequence": self.kind}
        name = names[self.form]
        if self.form == "sequence" and self.time == self.batch == 1:
            name += " one step"
        return name if self.dtype == "float32" else f"{name} {self.dtype}"

    @property
    def label(self) -> str:
        """(time, batch, input_size, hidden_size) and what is not the default."""
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
        """Steps of each sequence, longest first: all equal, or spread evenly from `time` down to nearly none."""
        if self.form != "packed":
            return (self.time,) * self.batch
        return tuple(max(1, self.time * (self.batch - row) // self.batch) for row in range(self.batch))

    @property
    def layer_input_sizes(self) -> tuple[int, ...]:
        """The input size of each layer."""
        return (self.input_size,) + (self.directions * self.hidden_size,) * (self.num_layers - 1)

    def weight_elements(self) -> int:
        """Elements of all weight matrices."""
        columns = sum(size + self.hidden_size for size in self.layer_input_sizes)
        return self.directions * GATES[self.kind] * self.hidden_size * columns

    def operations(self, mode: Mode) -> int:
        """Additions and multiplications of all products: every row of every step meets every weight once."""
        return _scale(mode) * 2 * sum(self.lengths) * self.weight_elements()

    def bytes_read(self) -> int:
        """Bytes of the weights: what a single step has to read, at least."""
        return BYTES_PER_ELEMENT[self.dtype] * self.weight_elements()


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
        """(batch, in_channels, out_channels, size, kernel_size), the mask's type, and the colours if there are any."""
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
        """Pairs of an input and an output channel that the mask allows at the centre."""
        colours = self.data_channels
        inputs = [channel * colours // self.in_channels for channel in range(self.in_channels)]
        outputs = [channel * colours // self.out_channels for channel in range(self.out_channels)]
        last = 0 if self.mask_type == "B" else 1  # type A leaves out a pixel's own colour
        return sum(source + last <= target for source in inputs for target in outputs)

    def bytes_read(self) -> int:
        """Bytes of the input images: they have to be read once, at least."""
        return BYTES_PER_FLOAT * self.batch * self.in_channels * self.size * self.size


Case = RecurrentCase | ConvolutionCase


def _scale(mode: Mode) -> int:
    return 3 if mode == "training" else 1


def _recurrent(shapes: list[tuple[int, ...]], form: Form = "sequence", dtype: Dtype = "float32") -> list[Case]:
    """Both kinds of cell for each (time, batch, input, hidden[, layers[, directions]])."""
    cases: list[Case] = []
    for kind in GATES:
        for time, batch, input_size, hidden_size, *rest in shapes:
            num_layers, directions = (*rest, 1, 1)[:2] if len(rest) < 2 else rest
            sizes = (time, batch, input_size, hidden_size, num_layers)
            cases.append(RecurrentCase(kind, *sizes, bidirectional=directions == 2, form=form, dtype=dtype))
    return cases


def quick_grid() -> list[Case]:
    """A few cases of every group: what can be checked and timed in about three minutes on two cores."""
    sequences = [(1, 1, 1024, 1024), (100, 8, 7, 33), (60, 17, 100, 300), (100, 32, 256, 256), (35, 20, 650, 650, 2)]
    return [
        *_recurrent(sequences),
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
    """From single steps to what fills the machine, and odd sizes in between."""
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
        *_recurrent(single_steps + sequences),
        *_recurrent([(100, 1, 64, 64), (60, 17, 100, 300), (50, 32, 256, 256), (50, 64, 512, 512)], "cell"),
        *_recurrent([(60, 17, 100, 300), (100, 32, 256, 256), (100, 64, 512, 512), (35, 20, 650, 650, 2)], "packed"),
        *_recurrent([(100, 32, 256, 256), (60, 17, 100, 300), (1, 1, 512, 512)], dtype="bfloat16"),
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
