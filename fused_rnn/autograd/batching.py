"""The torch.vmap rules of the operators: one call with all indices folded into the batch, or one call per index."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Batched = tuple[tuple[Tensor, ...], tuple[int | None, ...]]
"""The outputs of a vmapped call, and the vmapped dimension of each, None for one without."""

ROWS = -2
"""The batch dimension of everything that a recurrent layer takes and returns except weights: the last but one."""
IMAGES = 0
"""The batch dimension of images."""


def fold(tensor: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    """Fold a vmapped dimension into the batch as its faster index, which keeps the rows of packed sequences in order.

    Args:
        tensor: a tensor of any shape, with the vmapped dimension ``dim``; or None, which is returned as it is.
        dim: the vmapped dimension, or None if all indices share ``tensor``.
        size: the number of indices.
        batch: the batch dimension of ``tensor`` without the vmapped one.

    Returns:
        The tensor without ``dim``, with a batch ``size`` times as large.
    """
    if tensor is None:
        return None
    first = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    batch %= first.dim() - 1
    return first.movedim(0, batch + 1).flatten(batch, batch + 1)


def unfold(outputs: tuple[Tensor, ...], size: int, batch: int) -> Batched:
    """Undo :func:`fold` for all outputs except those of shape [0], which stand for results that were not computed."""
    unfolded: list[Tensor] = []
    dims: list[int | None] = []
    for output in outputs:
        unwanted = output.shape == (0,)
        at = None if unwanted else batch % output.dim()
        unfolded.append(output if at is None else output.unflatten(at, (output.size(at) // size, size)))
        dims.append(None if at is None else at + 1)
    return tuple(unfolded), tuple(dims)


def loop(function: Callable[..., tuple[Tensor, ...]], in_dims: tuple[Any, ...], size: int, *args: Any) -> Batched:
    """Call ``function`` once for each index of the vmapped dimensions, and stack its outputs.

    Args:
        function: called with ``args``, of which each tensor has its vmapped dimension removed.
        in_dims: the vmapped dimension of each argument; None for one that all indices share, or that is no tensor.
        size: the number of indices; if it is 0, one call with zeros in place of the vmapped tensors gives the shapes.
        args: the arguments.
    """
    if size == 0:
        zeros = (arg.sum(dim) if isinstance(dim, int) else arg for arg, dim in zip(args, in_dims, strict=True))
        outputs = function(*zeros)
        return tuple(output.unsqueeze(0)[:0] for output in outputs), (0,) * len(outputs)

    def at(index: int) -> Iterator[Any]:
        for arg, dim in zip(args, in_dims, strict=True):
            yield arg.select(dim, index) if isinstance(dim, int) else arg

    results = [function(*at(index)) for index in range(size)]
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


def shared(in_dims: tuple[Any, ...]) -> bool:
    """Whether all indices of a vmapped call share the arguments with these ``in_dims``."""
    return all(dim is None for dim in in_dims)


def vmap_layer(
    function: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: tuple[Any, ...],
    args: tuple[Any, ...],
    batch_sizes: int,
    weights: int,
    foldable: bool = True,
) -> Batched:
    """Call a recurrent layer, or its backward pass, for all indices: by one call if they share batch sizes and weights.

    Args:
        function: the layer or its backward pass, called with ``args``.
        size: the number of indices.
        in_dims: the vmapped dimension of each argument; None for one that all indices share, or that is no tensor.
        args: the arguments: some that are no tensors, batch sizes, lengths, resets, rows and states, then the weights.
        batch_sizes: the position of the batch sizes in ``args``; the lengths and the resets follow them.
        weights: the position of the first weight in ``args``.
        foldable: whether one call can compute the outputs for all indices.
    """
    sizes, lengths, resets, *rows = args[batch_sizes:weights]
    # With lengths the order of the saved gates depends on the whole batch, so they could not be unfolded.
    if lengths is not None or not foldable or size == 0 or not shared((in_dims[batch_sizes], *in_dims[weights:])):
        return loop(function, in_dims, size, *args)
    folded = (
        fold(tensor, dim, size, ROWS) for tensor, dim in zip(rows, in_dims[batch_sizes + 3 : weights], strict=True)
    )
    if resets is not None:  # one value for each row
        flags = fold(resets.unsqueeze(-1), in_dims[batch_sizes + 2], size, ROWS)
        resets = None if flags is None else flags.squeeze(-1)
    sizes = None if sizes is None else sizes * size
    return unfold(function(*args[:batch_sizes], sizes, None, resets, *folded, *args[weights:]), size, ROWS)
