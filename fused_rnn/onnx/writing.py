"""Replaces the operators of this package, in a program that torch.export made, by standard operators of ONNX."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_rnn.functional import onnx_export
from fused_rnn.functional.recurrent import mode_of
from fused_rnn.ops.shapes import directions_of, saved


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Return the table for ``run_decompositions`` of a program that ``torch.export.export`` made.

    ``torch.onnx.export`` can write the resulting program. It needs no such table for a model, since our layers write
    the nodes themselves while it runs.

    Returns:
        For each operator, the function that replaces it. It raises NotImplementedError for a PackedSequence, for
        ``proj_size`` and for resets, which ONNX does not have. A program that uses c of every step (``return_states``)
        becomes a model with the node ``fused_rnn.StatesOfEveryStep``, which no runtime knows.

    Example:
        >>> import torch, fused_rnn
        >>> program = torch.export.export(fused_rnn.GRU(4, 8).eval(), (torch.randn(5, 3, 4),))
        >>> program = program.run_decompositions(fused_rnn.onnx.decomposition_table())
        >>> any("fused_rnn" in str(node.target) for node in program.graph.nodes)
        False
    """
    operators = torch.ops.fused_rnn
    return {
        operators.recurrent.default: _recurrent,
        operators.masked_conv2d.default: onnx_export.masked_conv2d,
        operators.masked_conv2d_fused.default: _masked_conv2d_fused,
    }


def _masked_conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
    activation: str,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor]:
    """Return what :func:`fused_rnn.ops.masked_conv2d_fused` returns; a model has no backward pass."""
    output = onnx_export.masked_conv2d(input, weight, bias, mask_type, data_channels, dilation, activation, residual)
    return output, input.new_empty(0)


def _recurrent(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    save_for_backward: bool,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Return what :func:`fused_rnn.ops.recurrent` returns; a model has no backward pass, for which nothing is saved."""
    mode = mode_of(cell, cell)
    output, *finals = onnx_export.recurrent(
        mode.node, mode.layer, input, states, weights, batch_sizes, lengths, False, resets
    )
    history = saved(input, directions_of(states[0]), states[-1].size(-1), save_for_backward)
    absent = partial(torch.onnx.ops.symbolic, "fused_rnn::StatesOfEveryStep", (input,), version=1)
    histories = [absent(dtype=history.dtype, shape=history.shape) for _ in states[1:]]
    return output, finals, input.new_empty(0), histories
