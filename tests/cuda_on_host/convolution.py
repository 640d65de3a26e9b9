"""Masked convolution by the CUDA kernels, on the CPU: those for Hopper, or those for single warps."""

import ctypes
import math
from ctypes import c_bool, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from convolution_cases import ConvolutionCase
from torch import Tensor

# All tiles have tails in these: in channels, rows and columns of pixels; a kernel may reach beyond the image.
CASES = [
    ConvolutionCase(72, 136, (3, 3), "B", size=(11, 13)),
    ConvolutionCase(8, 64, (3, 3), "A", size=(9, 8), batch=1, bias=False),
    ConvolutionCase(64, 8, (5, 3), "vertical_A", size=(6, 19), dilation=(2, 1)),
    ConvolutionCase(16, 72, (1, 1), "B", size=(7, 5), batch=3),
    ConvolutionCase(24, 40, (7, 5), "vertical_B", size=(3, 2), dilation=(1, 2)),
    ConvolutionCase(8, 16, (1, 7), "B", size=(1, 9)),
    ConvolutionCase(40, 8, (5, 1), "A", size=(17, 1), bias=False),
    ConvolutionCase(64, 128, (5, 5), "B", size=(33, 10), batch=1),
    ConvolutionCase(136, 24, (3, 9), "A", size=(5, 30), batch=1),
    ConvolutionCase(8, 192, (3, 3), "A", size=(4, 16), dilation=(3, 2)),
    ConvolutionCase(8, 8, (1, 1), "B", size=(40, 40), batch=3),  # many parts of one sum
    # Groups of channels, which begin at multiples of 8.
    ConvolutionCase(72, 144, (3, 3), "B", 3, size=(9, 10)),
    ConvolutionCase(160, 96, (3, 5), "A", 4, size=(3, 14), dilation=(2, 1)),
    ConvolutionCase(16, 208, (1, 1), "B", 2, size=(7, 9)),
    ConvolutionCase(216, 24, (1, 3), "A", 3, size=(2, 17), bias=False),
    # So many runs of taps and output channels that each thread adds the parts of several.
    ConvolutionCase(16, 480, (17, 1), "A", 2, size=(12, 3), batch=1),
    # So many runs of taps and output channels that each thread adds the parts of several.
    ConvolutionCase(16, 480, (17, 1), "A", 2, size=(12, 3), batch=1),
]
# First layers: one block of 64 columns or two, one block of 64 output channels or two, groups, and any tails.
FIRST_LAYERS = [
    ConvolutionCase(1, 8, (3, 3), "A", size=(5, 7)),
    ConvolutionCase(1, 64, (7, 7), "A", size=(28, 28), batch=1),
    ConvolutionCase(3, 72, (5, 5), "B", size=(9, 13), batch=3, bias=False),
    ConvolutionCase(3, 120, (3, 3), "A", 3, size=(8, 16)),
    ConvolutionCase(2, 128, (3, 5), "B", 2, size=(6, 5)),
    ConvolutionCase(15, 128, (3, 3), "vertical_B", size=(6, 11), dilation=(2, 3)),
    ConvolutionCase(4, 64, (1, 1), "B", 4, size=(20, 30)),
    ConvolutionCase(1, 16, (1, 127), "A", size=(2, 40)),
    ConvolutionCase(8, 120, (1, 3), "B", size=(1, 1), batch=1),
]

GUARD = 56
"""Values before and after each array, which no kernel may touch; arrays are aligned to 16 bytes and no more."""


class Convolution(ctypes.Structure):
    """The struct of convolutions.cpp."""

    SIZES = "batch height width in_channels out_channels kernel_height kernel_width dilation_height dilation_width"
    ARRAYS = "input weight bias grad_output output grad_input grad_weight grad_bias"
    STRIDES = (
        "image_batch_stride image_channel_stride image_row_stride image_column_stride out_stride in_stride tap_stride"
    )
    GRADIENT_STRIDES = "grad_out_stride grad_in_stride grad_tap_stride"
    _fields_ = [
        *((name, c_int64) for name in [*SIZES.split(), "data_channels", "dense_taps"]),
        *((name, c_void_p) for name in ARRAYS.split()),
        *((name, c_int64) for name in [*STRIDES.split(), *GRADIENT_STRIDES.split()]),
        *((name, c_int32) for name in ("rows", "channel_groups", "multiprocessors", "element_bytes")),
        *((name, c_bool) for name in ("own_group", "bfloat16", "relu", "hopper")),
    ]


class Tiles(NamedTuple):
    """The tiles of a kernel."""

    rows: int = 0
    """Of pixels; 0 for what the library chooses."""
    channel_groups: int = 0


CHOSEN = Tiles()


class Convolutions:
    """The kernels in a library that :func:`cuda_on_host.build.build` made."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.convolution_is_built.restype = c_bool

    def choose_schedule(self, seed: int) -> None:
        self._library.choose_schedule(seed)

    def choose_fault(self, number: int) -> None:
        """Switch a planted fault on, or all off with a number that none has."""
        self._library.choose_fault(number)

    def run(self, name: str, params: Convolution) -> None:
        """Run forward, input_gradient or parameter_gradients.

        Raises:
            RuntimeError: there is no such plan, or what the kernel does wrong.
        """
        error = self.call(name, params)
        if error is not None:
            raise RuntimeError(error)

    def call(self, name: str, params: Convolution, *results: Any) -> str | None:
        function = self._library[f"convolution_{name}"]
        function.restype = c_char_p
        error = function(ctypes.byref(params), *results)
        return None if error is None else error.decode()

    def choice(self, params: Convolution) -> tuple[list[str], str | None]:
        """Return which kernels compute forward pass, input gradient and parameter gradients, and why not others."""
        kernels = (c_int32 * 3)()
        reason = self.call("choice", params, ctypes.byref(kernels))
        return [("rectangles", "boxes", "first layer", "mma")[kernel] for kernel in kernels], reason

    def chosen_tiles(self, name: str, params: Convolution) -> tuple[int, int]:
        """Return the rows and groups of channels of the tiles that are chosen for a pass."""
        tiles = (c_int32 * 2)()
        self._library.convolution_tiles(ctypes.byref(params), name.encode(), ctypes.byref(tiles))
        return tiles[0], tiles[1]

    def chosen_mma_channels(self, params: Convolution) -> tuple[int, int]:
        """Return the channels of the tiles that are chosen for single warps, forward and for the parameters."""
        channels = (c_int32 * 2)()
        self._library.convolution_mma_channels(ctypes.byref(params), ctypes.byref(channels))
        return channels[0], channels[1]

    def built(self) -> list[Tiles]:
        """Return the tiles of forward and input gradient."""
        every = [Tiles(rows, groups) for groups in (1, 2) for rows in (32, 28, 16, 14, 8)]
        return [tiles for tiles in every if self._library.convolution_is_built(*tiles)]


class Guarded:
    """An array that is NaN at first, between guards."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = math.prod(shape)
        self._memory = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype)
        self.values = self._memory[GUARD : GUARD + size].view(shape)

    def copy(self, values: Tensor) -> "Guarded":
        self.values.copy_(values)
        return self

    def check(self) -> None:
        """Assert that the guards are as they were."""
        size = self.values.numel()
        assert self._memory[:GUARD].isnan().all()
        assert self._memory[GUARD + size :].isnan().all()


def dense_taps(case: ConvolutionCase) -> int:
    """Return how many taps are active for all channels, all of them the first ones."""
    return int(case.mask().flatten(2).all(0).all(0).sum())


@dataclass(frozen=True)
class OnHost:
    """A masked convolution by the kernels, which autograd can differentiate."""

    kernels: Convolutions
    case: ConvolutionCase
    tiles: Tiles = CHOSEN
    """Those of forward and input gradient."""
    gradient_tiles: Tiles = CHOSEN
    """Those of the weight gradient."""
    multiprocessors: int = 3
    """So few that a block has several tiles."""
    relu: bool = False
    gap: int = 0
    """Values in memory after what the weight has of a tap, and of an output; of an output alone if it is contiguous."""
    grad_channels_last: bool = False
    """Whether the weight's gradient has the input channels last in memory."""
    first_layer: bool = False
    """Whether to use the kernels for few input channels, of which there is none for the input's gradient."""
    mma: bool = False
    """Whether to use the kernels for single warps, of which there is none for the gradients of float32 parameters."""
    contiguous: bool = False
    """Whether input and weight are as PyTorch makes them, not channels last; only for a first layer."""

    def params(self, tiles: Tiles, **arrays: Guarded | None) -> Convolution:
        """Return the arguments of a kernel; they do not keep the arrays alive."""
        case = self.case
        params = Convolution(case.batch, *case.size, case.in_channels, case.out_channels)
        params.kernel_height, params.kernel_width = case.kernel_size
        params.dilation_height, params.dilation_width = case.dilation
        params.data_channels, params.dense_taps = case.data_channels, dense_taps(case)
        params.own_group, params.relu = case.mask_type == "B", self.relu
        params.rows, params.channel_groups = tiles
        params.multiprocessors, params.hopper, params.element_bytes = self.multiprocessors, not self.mma, 2
        for name, array in arrays.items():
            if array is not None:
                setattr(params, name, array.values.data_ptr())
                params.bfloat16 = array.values.dtype == torch.bfloat16
                params.element_bytes = array.values.dtype.itemsize
        height, width = case.size
        if self.contiguous:
            channel, row, column = height * width, width, 1
            params.in_stride, params.tap_stride = self.taps, 1
            params.out_stride = case.in_channels * self.taps + self.gap
        else:
            channel, row, column = 1, width * case.in_channels, case.in_channels
            params.in_stride, params.tap_stride = 1, case.in_channels + self.gap
            params.out_stride = self.taps * params.tap_stride + self.gap
        params.image_batch_stride = height * width * case.in_channels
        params.image_channel_stride, params.image_row_stride, params.image_column_stride = channel, row, column
        strides = (self.taps * case.in_channels, 1, case.in_channels)
        if not self.grad_channels_last:
            strides = (self.taps * case.in_channels, self.taps, 1)
        params.grad_out_stride, params.grad_in_stride, params.grad_tap_stride = strides
        return params

    @property
    def taps(self) -> int:
        return math.prod(self.case.kernel_size)

    def images(self, images: Tensor | None, channels: int, dtype: torch.dtype) -> Guarded:
        """Return memory for images, with their values if there are any."""
        made = Guarded((self.case.batch, *self.case.size, channels), dtype)
        return made if images is None else made.copy(images.permute(0, 2, 3, 1))

    def input(self, input: Tensor) -> Guarded:
        """Return the input as the kernels read it."""
        if self.contiguous:
            return Guarded(tuple(input.shape), input.dtype).copy(input)
        return self.images(input, self.case.in_channels, input.dtype)

    def weight(self, weight: Tensor) -> Guarded:
        """Return a weight as the kernels read it; masked entries and gaps are NaN."""
        case = self.case
        if self.contiguous:
            size = case.in_channels * self.taps
            made = Guarded((case.out_channels, size + self.gap), weight.dtype)
            made.values[:, :size] = weight.masked_fill(~case.mask(), float("nan")).flatten(1)
            return made
        row = case.in_channels + self.gap
        made = Guarded((case.out_channels * (self.taps * row + self.gap),), weight.dtype)
        values = made.values.view(case.out_channels, -1)[:, : self.taps * row].unflatten(1, (self.taps, row))
        spoilt = weight.masked_fill(~case.mask(), float("nan"))
        values[..., : case.in_channels] = spoilt.flatten(2).transpose(1, 2)
        return made

    def run(self, name: str, results: dict[str, Guarded], **given: Guarded | None) -> None:
        """Run a kernel, and check that it changed no more than it should."""
        before = {key: array.values.clone() for key, array in given.items() if array is not None}
        tiles = self.gradient_tiles if name == "parameter_gradients" else self.tiles
        self.kernels.run(f"mma_{name}" if self.mma else name, self.params(tiles, **given, **results))
        for key, array in given.items():
            if array is not None:
                array.check()
                assert torch.equal(array.values.view(torch.int16), before[key].view(torch.int16)), f"{key} was written"
        for array in results.values():
            array.check()

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return _Function.apply(self, input, weight, bias)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = self.images(None, self.case.out_channels, input.dtype)
        self.run(
            "first_layer" if self.first_layer else "forward", {"output": output}, input=self.input(input),
            weight=self.weight(weight), bias=None if bias is None else Guarded(bias.shape, bias.dtype).copy(bias),
        )  # fmt: skip
        return output.values.permute(0, 3, 1, 2)

    def input_gradient(self, grad_output: Tensor, weight: Tensor) -> Tensor:
        grad = self.images(None, self.case.in_channels, weight.dtype)
        grads = self.images(grad_output, self.case.out_channels, weight.dtype)
        self.run("input_gradient", {"grad_input": grad}, grad_output=grads, weight=self.weight(weight))
        return grad.values.permute(0, 3, 1, 2)

    def parameter_gradients(
        self, grad_output: Tensor, input: Tensor, wants_weight: bool = True, wants_bias: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        case, dtype = self.case, input.dtype
        results = {}
        if wants_weight:
            results["grad_weight"] = Guarded((case.out_channels * case.in_channels * self.taps,), dtype)
        if wants_bias:
            results["grad_bias"] = Guarded((case.out_channels,), dtype)
        grads = self.images(grad_output, case.out_channels, dtype)
        name = "first_layer_parameter_gradients" if self.first_layer else "parameter_gradients"
        self.run(name, results, grad_output=grads, input=self.input(input))
        weight = results["grad_weight"].values if wants_weight else None
        if weight is not None:
            kernel = case.kernel_size
            weight = (
                weight.view(case.out_channels, *kernel, case.in_channels).permute(0, 3, 1, 2)
                if self.grad_channels_last
                else weight.view(case.out_channels, case.in_channels, *kernel)
            )
        return weight, results["grad_bias"].values if wants_bias else None


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, host: OnHost, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.host, ctx.has_bias = host, bias is not None
        ctx.save_for_backward(input, weight)
        return host.forward(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad_input = None if ctx.host.first_layer else ctx.host.input_gradient(grad_output, weight)
        if input.dtype == torch.float32:
            return None, grad_input, None, None
        return None, grad_input, *ctx.host.parameter_gradients(grad_output, input, wants_bias=ctx.has_bias)
