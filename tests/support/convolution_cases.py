"""Masked convolutions for several tests, and an oracle that is independent of the package."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from comparing import differentiate
from torch import Tensor
from torch.nn.functional import conv2d

from fused_rnn import functional

Layout = Callable[[Tensor], Tensor]
Convolution = Callable[..., Tensor]
VERTICAL = ("vertical_A", "vertical_B")
# Each mask type with the numbers of groups that it is tested with.
MASKS = [("A", 1), ("A", 3), ("B", 1), ("B", 3), ("vertical_A", 1), ("vertical_B", 1)]


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def as_made(tensor: Tensor) -> Tensor:
    return tensor


def gated(sums: Tensor, groups: int) -> Tensor:
    """Compute tanh(a) * sigmoid(b) channel by channel, where a and b are the halves of each group of channels."""
    channels = sums.size(1) // 2
    half = channels // groups
    firsts = [2 * half * (channel // half) + channel % half for channel in range(channels)]
    return sums[:, firsts].tanh() * sums[:, [first + half for first in firsts]].sigmoid()


@dataclass(frozen=True)
class ConvolutionCase:
    """A masked convolution and the images for it."""

    in_channels: int = 4
    out_channels: int = 6
    kernel_size: tuple[int, int] = (3, 3)
    mask_type: str = "B"
    data_channels: int = 1
    size: tuple[int, int] = (5, 6)
    dilation: tuple[int, int] = (1, 1)
    batch: int = 2
    bias: bool = True
    activation: str | None = None
    residual: bool = False

    def __str__(self) -> str:
        changed = {name: value for name, value in vars(self).items() if value != getattr(ConvolutionCase, name)}
        return "-".join(f"{name}={value}" for name, value in changed.items()).replace(" ", "") or "default"

    @property
    def options(self) -> tuple[str, int, tuple[int, int]]:
        return self.mask_type, self.data_channels, self.dilation

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return input, weight, bias and residual, with values that are exact in bfloat16."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).bfloat16().to(dtype)

        tensors = {
            "input": random(self.batch, self.in_channels, *self.size),
            "weight": random(self.out_channels, self.in_channels, *self.kernel_size),
        }
        if self.bias:
            tensors["bias"] = random(self.out_channels)
        if self.residual:
            halves = 2 if self.activation == "gated" else 1
            tensors["residual"] = random(self.batch, self.out_channels // halves, *self.size)
        return tensors

    def mask(self) -> Tensor:
        """Return a mask of the weight, computed from its definition entry by entry, which the caller may change."""
        return self._computed_mask().clone()

    @cache  # noqa: B019  (cases live as long as the tests)
    def _computed_mask(self) -> Tensor:
        height, width = self.kernel_size
        entries = product(range(self.out_channels), range(self.in_channels), range(height), range(width))
        # A list, since a tensor takes long to write to, entry by entry.
        return torch.tensor([self._is_active(*entry) for entry in entries], dtype=torch.bool).view(
            self.out_channels, self.in_channels, height, width
        )

    def _is_active(self, out_channel: int, in_channel: int, y: int, x: int) -> bool:
        height, width = self.kernel_size
        centre = (height // 2, width // 2)
        if self.mask_type in VERTICAL:
            return y < height // 2 or (self.mask_type == "vertical_B" and y == height // 2)
        if (y, x) != centre:
            return (y, x) < centre
        out_group = out_channel * self.data_channels // self.out_channels
        in_group = in_channel * self.data_channels // self.in_channels
        return in_group < out_group or (self.mask_type == "B" and in_group == out_group)

    def taps_that_see(self, pixel: tuple[int, int]) -> Tensor:
        """Return which taps read a pixel for any pixel of the image, ``[height, width]`` of the kernel."""
        taps = torch.zeros(self.kernel_size, dtype=torch.bool)
        for tap in product(*map(range, self.kernel_size)):
            # The pixel whose tap this is.
            by = [p - (t - k // 2) * d for p, t, k, d in zip(pixel, tap, self.kernel_size, self.dilation, strict=True)]
            taps[tap] = all(0 <= p < size for p, size in zip(by, self.size, strict=True))
        return taps

    def ours(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        return functional.masked_conv2d(input, weight, bias, *self.options, self.activation, residual)

    def oracle(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        padding = [k // 2 * d for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        output = conv2d(input, weight * self.mask().to(weight.device), bias, padding=padding, dilation=self.dilation)
        if self.activation == "relu":
            output = output.relu()
        if self.activation == "gated":
            output = gated(output, self.data_channels)
        return output if residual is None else output + residual

    def result(
        self,
        convolution: Convolution,
        dtype: torch.dtype,
        layout: Layout = as_made,
        grad_layout: Layout = as_made,
        weight_layout: Layout = as_made,
        device: str = "cpu",
    ) -> dict[str, Tensor]:
        """Return the output and all gradients; the layouts change the images and the weight in memory."""
        leaves = {name: tensor.to(device).requires_grad_() for name, tensor in self.tensors(dtype).items()}
        layouts = {"input": layout, "residual": layout, "weight": weight_layout}
        output = convolution(**{name: layouts.get(name, as_made)(leaf) for name, leaf in leaves.items()})
        # The view of the output receives its gradient in the layout of grad_layout.
        with_layout = WithGradientLayout.apply(output, grad_layout)
        return {"output": output.detach(), **differentiate([with_layout], leaves)}


class WithGradientLayout(torch.autograd.Function):
    """The identity, which changes the memory layout of the gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, images: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout  # type: ignore[attr-defined]
        return images.view_as(images)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layout(grad), None  # type: ignore[attr-defined]


# Kernels of all forms; images of odd sizes, with one row or column, and smaller than the kernel.
FORMS = [
    ConvolutionCase(mask_type=mask_type, data_channels=groups, kernel_size=kernel, size=size, dilation=dilation)
    for (mask_type, groups), (kernel, size, dilation) in product(
        MASKS,
        [
            ((3, 3), (5, 6), (1, 1)), ((1, 1), (3, 4), (1, 1)), ((1, 5), (3, 7), (1, 1)), ((5, 1), (7, 3), (1, 1)),
            ((3, 7), (4, 9), (1, 1)), ((7, 7), (3, 2), (1, 1)), ((5, 3), (1, 5), (1, 1)), ((3, 5), (6, 1), (1, 1)),
            ((3, 3), (7, 9), (2, 3)), ((5, 5), (4, 3), (3, 1)), ((3, 3), (5, 6), (1, 2)), ((7, 7), (13, 11), (1, 1)),
        ],
    )
]  # fmt: skip
CHANNELS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100)
# Each number of input and output channels, with and without groups; and images of several strips of rows.
TAILS = [
    ConvolutionCase(channels, other, mask_type=mask_type, data_channels=groups, size=(5, 19))
    for channels, other in zip(CHANNELS, CHANNELS[7:] + CHANNELS[:7], strict=True)
    for mask_type, groups in (("A", 1), ("B", 3), ("vertical_B", 1))
    if groups <= min(channels, other)
] + [
    ConvolutionCase(3, 64, (7, 7), "A", 3, (30, 28)),
    ConvolutionCase(64, 3, (1, 1), "B", 3, (30, 28)),
    ConvolutionCase(65, 130, (3, 3), "B", 1, (17, 33), bias=False),
    ConvolutionCase(65, 130, (3, 3), "vertical_A", 1, (17, 33), bias=False),
]
# Every activation, with and without a residual, in images of several strips of rows, and of one pixel.
FUSED = [
    ConvolutionCase(channels, out_channels, (3, 5), mask_type, groups, size, activation=activation, residual=residual)
    for activation, residual in product((None, "relu", "gated"), (False, True))
    if activation or residual
    for mask_type, groups in MASKS
    for channels, out_channels, size in ((3, 6, (1, 1)), (4, 12, (5, 6)), (40, 72, (19, 17)))
]
