"""The function :func:`check_autoregressive`, and the rules by which it judges."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fused_rnn.autoregressive.probe import Index, Probe
from fused_rnn.autoregressive.report import AutoregressiveReport, Finding, Kind
from fused_rnn.models import AutoregressiveImageModel

MORE_POINTS = 8
"""By how much the number of points grows at most where a dependency has not shown, before it counts as missing."""


def check_autoregressive(
    model: Callable[..., Any],
    shape: tuple[int, int, int],
    data_channels: int | None = None,
    *,
    args: Sequence[Any] = (),
    levels: int | None = None,
    encode: Callable[[Tensor], Any] | None = None,
    layout: Literal["blocks", "interleaved"] = "blocks",
    random_weights: bool = True,
    points: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> AutoregressiveReport:
    """Check that a model of images is autoregressive, by changing one value of an image after the other.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, equations 1 and 2: the
    outputs at a pixel are to predict it from the pixels before it in raster order, and a colour of it also from the
    colours before it at the same pixel. An output *depends* on a value of the image if it changes in any bit when only
    that value does, for some of several random images and weights. A dependency on anything else, the pixel itself
    included, or on another image of the batch, is a **leak**. A dependency is **missing** if an output does not depend
    on some channel of the pixel to the left, of the pixel above, or on some earlier colour of its own pixel. A model is
    autoregressive if it has neither.

    Two things are warnings only. A **blind spot** is a place before the output that no output sees, though outputs see
    one that is at least as far away, in rows and in columns to the same side. Stacks of type A and B masks always have
    one. And a **NaN** in a pixel can reach outputs that do not depend on it, where weights are multiplied by a mask of
    zeros.

    The model is checked in the mode in which it is: batch normalisation leaks in training mode, and does not in eval
    mode. Work is done on a copy on the CPU, so the model, its buffers and the random state do not change.

    Args:
        model: a module that maps images ``[batch, channels, height, width]`` to outputs ``[batch, outputs, height,
            width]``. Of a :class:`fused_rnn.models.AutoregressiveImageModel` the network is checked. Any other callable
            is called as it is, with its own weights, and layers inside it are not named.
        shape: channels, height and width of the images. The check takes ``channels * height * width`` passes for each
            point, so they should be as small as the masks allow, such as 8 by 8.
        data_channels: the number of groups of colours, into which the channels of images and of outputs are divided, as
            in :class:`fused_rnn.MaskedConv2d`; None for what the model's distribution has, or else 1. With 1 all
            channels of a pixel are predicted together, and no output may see any channel of its own pixel.
        args: what the model is given after the images, such as a condition, for a batch of one image. Tensors are
            repeated for larger batches. The condition of an ``AutoregressiveImageModel`` may be left out.
        levels: the number of levels of images of integers, for a model that takes such; None for real numbers, and for
            an ``AutoregressiveImageModel``.
        encode: what to apply to the images before the model gets them, such as ``lambda images: images[:, 0]``.
        layout: which output channels belong to a colour: ``"blocks"``, contiguous blocks as in ``MaskedConv2d``, or
            ``"interleaved"``, where channel ``c`` belongs to colour ``c % data_channels``.
        random_weights: whether to give all trained parameters of the copy random values, since zeros hide leaks. A
            model whose masks are zeros in its own weights needs False.
        points: the number of random images, and of random weights.
        dtype: the dtype in which to compute. A model that converts its input to float32 itself needs that.
        seed: of the random numbers.

    Returns:
        A report, which is true if the model is autoregressive, and names output, input and layer of every finding.

    Raises:
        ValueError: an argument is out of range, or the model's outputs do not have the size of the images, are not
            finite, or differ from one run to the next.

    Example:
        >>> import torch, fused_rnn
        >>> from fused_rnn import MaskedConv2d
        >>> wrong = torch.nn.Sequential(MaskedConv2d(1, 8, 3, "B"), torch.nn.ReLU(), MaskedConv2d(8, 4, 3, "B"))
        >>> report = fused_rnn.check_autoregressive(wrong, (1, 5, 5))
        >>> print(report.leaks[0])
        output (0, 0) of colour 0 depends on input (0, 0) of channel 0; first shows in 0 (MaskedConv2d)
        >>> right = torch.nn.Sequential(MaskedConv2d(1, 8, 3, "A"), torch.nn.ReLU(), MaskedConv2d(8, 4, 3, "B"))
        >>> bool(fused_rnn.check_autoregressive(right, (1, 5, 5)))
        True
    """
    if isinstance(model, AutoregressiveImageModel):
        if levels is not None or encode is not None:
            raise ValueError("levels and encode must be None for a model whose network is checked")
        data_channels = model.distribution.data_channels if data_channels is None else data_channels
        args, model = _condition(model, args), model.network
    groups = 1 if data_channels is None else data_channels
    _check_arguments(shape, groups, levels, layout, points)
    probe = Probe(model, shape, groups, levels, encode, args, layout == "interleaved", random_weights, dtype)
    allowed, needed = _allowed(shape, groups), _needed(shape, groups)
    found = torch.zeros_like(allowed)
    mixed: tuple[Finding, ...] = ()
    for point in range(MORE_POINTS * points):
        if point >= points and not (needed & ~found).any():
            break
        probe.set_point(seed + point)
        mixed = mixed or _mixed_images(probe)
        found |= probe.dependencies()
    probe.set_point(seed)
    infected = probe.dependencies(nan=True) if levels is None and dtype.is_floating_point else torch.zeros_like(found)
    seeds = range(seed, seed + points)
    return AutoregressiveReport(
        leaks=(*mixed, *_located(Kind.LEAK, found & ~allowed, probe, seeds)),
        missing=_located(Kind.MISSING, needed & ~found, probe, seeds),
        warnings=(*_blind_spots(found, allowed), *_located(Kind.NAN, infected & ~allowed & ~found, probe, [seed])),
    )


def _condition(model: AutoregressiveImageModel, args: Sequence[Any]) -> Sequence[Any]:
    """Return the condition that a model's network takes, random if none is given."""
    if not model.condition_size:
        return args
    given = args[0] if args else torch.linspace(-1, 1, model.condition_size)[None]
    return [model.condition(given, 1, torch.float64)]


def _check_arguments(
    shape: tuple[int, int, int], data_channels: int, levels: int | None, layout: str, points: int
) -> None:
    """Check the arguments of :func:`check_autoregressive`."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be channels, height and width, all positive, got {tuple(shape)}")
    if not 1 <= data_channels <= shape[0]:
        raise ValueError(f"data_channels must be from 1 to the {shape[0]} channels of shape, got {data_channels}")
    if levels is not None and levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if layout not in ("blocks", "interleaved"):
        raise ValueError(f"layout must be 'blocks' or 'interleaved', got {layout!r}")
    if points < 1:
        raise ValueError(f"points must be positive, got {points}")


def _earlier_colours(shape: tuple[int, int, int], data_channels: int) -> Tensor:
    """Return the places of earlier colours of the same pixel, in the layout of ``Probe.dependencies``."""
    channels, height, width = shape
    colour = torch.arange(channels) * data_channels // channels
    earlier = colour < torch.arange(data_channels)[:, None]
    same = torch.eye(height * width, dtype=torch.bool).view(height, width, height, width)
    return earlier[:, None, None, :, None, None] & same[None, :, :, None]


def _allowed(shape: tuple[int, int, int], data_channels: int) -> Tensor:
    """Return which dependencies are allowed: pixels that come before, and earlier colours of the same pixel."""
    _, height, width = shape
    pixel = torch.arange(height * width)
    before = (pixel < pixel[:, None]).view(height, width, height, width)
    return before[None, :, :, None] | _earlier_colours(shape, data_channels)


def _needed(shape: tuple[int, int, int], data_channels: int) -> Tensor:
    """Return which dependencies a model must have: left neighbour, upper neighbour, earlier colours of the pixel."""
    _, height, width = shape
    row, column = torch.arange(height), torch.arange(width)
    # Of output row and column, and input row and column.
    rows_up = row[:, None, None, None] - row[:, None]
    columns_left = column[:, None, None] - column
    left, above = (rows_up == 0) & (columns_left == 1), (rows_up == 1) & (columns_left == 0)
    return (left | above)[None, :, :, None] | _earlier_colours(shape, data_channels)


def _located(kind: Kind, wrong: Tensor, probe: Probe, seeds: Sequence[int]) -> tuple[Finding, ...]:
    """Return a finding for each place of ``wrong``, with the layer where it first shows.

    A leak first shows in the first module, in the order of execution, whose output at the same pixel and in the same
    group of colours depends on the input. A missing dependency first shows in the module after the last one whose
    output does depend on it.
    """
    layers: dict[Index, tuple[list[str], Tensor]] = {}
    inputs = [tuple(index) for index in wrong.flatten(0, 2).any(0).nonzero().tolist()]
    for number, seed in enumerate(seeds if inputs else ()):
        probe.set_point(seed)
        for index in inputs:
            history = probe.history(index, nan=kind is Kind.NAN)
            if number == 0:
                layers[index] = probe.layers(), history
            elif history.shape == layers[index][1].shape:
                layers[index][1].logical_or_(history)
    findings = []
    for colour, row, column, *index in wrong.nonzero().tolist():
        names, history = layers[tuple(index)]
        places = history[:, colour, row, column].nonzero().flatten().tolist()
        if kind is Kind.MISSING:
            layer = names[min(places[-1] + 1, len(names) - 1) if places else 0]
        else:
            layer = names[places[0] if places else -1]
        findings.append(Finding(kind, (row, column), colour, (index[1], index[2]), index[0], layer))
    return tuple(findings)


def _mixed_images(probe: Probe) -> tuple[Finding, ...]:
    """Return a finding if the output for an image depends on another image of the batch."""
    history = probe.mixes_images()
    if not history[-1].any():
        return ()
    colour, row, column = history[-1].nonzero()[0].tolist()
    layer = probe.layers()[int(history[:, colour, row, column].nonzero()[0])]
    return (Finding(Kind.OTHER_IMAGE, (row, column), colour, (row, column), 0, layer),)


def _blind_spots(found: Tensor, allowed: Tensor) -> tuple[Finding, ...]:
    """Return a finding for each place relative to an output that no output sees, but that lies nearer than one seen."""
    seen = (found & allowed).any(3).any(0)  # of pixels: [height, width, height, width]
    offsets: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]] = {}
    reached = set()
    for row, column, other_row, other_column in allowed.any(3).any(0).nonzero().tolist():
        offset = (row - other_row, other_column - column)
        offsets.setdefault(offset, ((row, column), (other_row, other_column)))
        if seen[row, column, other_row, other_column]:
            reached.add(offset)

    def lies_nearer(near: tuple[int, int], far: tuple[int, int]) -> bool:
        return near[0] <= far[0] and (far[1] <= near[1] <= 0 or 0 <= near[1] <= far[1])

    return tuple(
        Finding(Kind.BLIND_SPOT, output, 0, input, 0)
        for offset, (output, input) in sorted(offsets.items())
        if offset not in reached and any(lies_nearer(offset, far) for far in reached)
    )
