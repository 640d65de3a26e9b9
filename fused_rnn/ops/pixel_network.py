"""The operator ``pixel_network``, which evaluates a network of masked convolutions pixel by pixel."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

_pixel_network = torch.ops.fused_rnn.pixel_network.default
_pixel_network_pack = torch.ops.fused_rnn.pixel_network_pack.default


class Kind(IntEnum):
    """What a node computes: the values of ``PixelNodeKind`` in csrc/params/pixel_network.h."""

    CONVOLUTION = 0
    RELU = 1
    GATE = 2
    ADD = 3
    MULTIPLY = 4
    COPY = 5


class Distribution(IntEnum):
    """How pixels are drawn: the values of ``PixelDistribution`` in csrc/params/pixel_network.h."""

    NONE = 0
    CATEGORICAL = 1
    LOGISTIC_MIXTURE = 2


class Node(NamedTuple):
    """One operation of a network. It reads and writes values, which it names by their positions in a list."""

    kind: Kind
    whole_row: bool
    """Whether it depends only on the pixels of rows above, so that a whole row of it is computed at once."""
    inputs: tuple[int, int]
    """A node with one input names it twice."""
    output: int
    details: tuple[int, ...] = ()
    """Of a convolution: the positions of weight and bias among the parameters (-1 for no bias), that of the mask type
    in ``MASK_TYPES`` of the reference, the number of groups of channels, and the dilation. Of a copy: the first channel
    in the input and in the output, and how many. Of a gate: two zeros, and the number of groups of channels."""


def encode(nodes: Sequence[Node]) -> list[int]:
    """Return the nodes as the operators take them: eleven numbers each."""
    numbers: list[int] = []
    for node in nodes:
        details = (*node.details, *(0,) * (6 - len(node.details)))
        numbers += [int(node.kind), int(node.whole_row), *node.inputs, node.output, *details]
    return numbers


class Draw(NamedTuple):
    """How pixels are drawn from the output of a network."""

    distribution: Distribution
    image: Tensor
    """``[batch, channels, height, width]``, int64: levels, written where they are not observed."""
    observed: Tensor | None
    """``[batch, height, width]``, boolean; None if no pixel is observed."""
    uniforms: Tensor
    """``[batch, height, width, groups, numbers]``, float64: random numbers from 0 to 1, 1 excluded. A categorical
    distribution takes one number, a mixture of logistic distributions one for the component and one a channel."""
    scaled: Tensor
    """``[levels]``: the input of the network for each level."""
    factor: float
    """The value of a level is ``level * factor + offset``; only a mixture uses it."""
    offset: float
    temperature: float
    """Not negative; 0 draws the likeliest level."""


def pixel_network(
    values: Sequence[Tensor],
    parameters: Sequence[Tensor],
    packed: Tensor,
    nodes: Sequence[int],
    groups: int,
    width: int,
    begin: int,
    end: int,
    outputs: Tensor | None = None,
    draw: Draw | None = None,
) -> None:
    """Compute some steps of a network in raster order; step ``(row * width + column) * groups + group`` is one pixel's.

    Args:
        values: what the nodes read and write, ``[batch, rows, columns, channels]`` each: the last ``rows`` rows of
            pixels, row ``r`` at ``r % rows``, with margins of zeros at both ends. One with a single column is the same
            for all columns. Value 0 is the network's input. All of them are changed.
        parameters: weights and biases, contiguous.
        packed: what :func:`pixel_network_pack` returned for them.
        nodes: the nodes, encoded, of which the last one computes the network's output.
        groups: how many groups of channels are computed one after the other at every pixel.
        width: the width of the images.
        begin: the first step. All steps before it must have been computed.
        end: the step after the last one.
        outputs: ``[batch, channels of the output, height, width]``, where the outputs are written; None if not wanted.
        draw: how pixels are drawn; None if the caller writes them to value 0.
    """
    image, observed, uniforms, scaled = draw[1:5] if draw else (None, None, None, None)
    factor, offset, temperature = draw[5:] if draw else (1.0, 0.0, 1.0)
    distribution = int(draw.distribution if draw else Distribution.NONE)
    _pixel_network(
        values, parameters, packed, nodes, groups, width, begin, end,
        image, observed, uniforms, scaled, outputs, distribution, factor, offset, temperature,
    )  # fmt: skip


def pixel_network_pack(parameters: Sequence[Tensor], nodes: Sequence[int], groups: int) -> Tensor:
    """Pack the weights of a network's convolutions as the kernel reads them.

    Args:
        parameters: as given to :func:`pixel_network`.
        nodes: as given to :func:`pixel_network`.
        groups: as given to :func:`pixel_network`.

    Returns:
        ``[values]``, which depend on the device, and on a CPU on its instruction set.
    """
    return _pixel_network_pack(parameters, nodes, groups)
