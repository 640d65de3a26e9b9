"""Runs recurrent layers and cells whose weights are frozen: packed once, and kept from call to call."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fused_rnn import ops
from fused_rnn.autograd.recurrent import like_output
from fused_rnn.functional.autocast import autocast_enabled
from fused_rnn.functional.recurrent import Mode, mode_of, run, run_cell


def freeze_weights(
    name: str, cell: str, weights: Sequence[Tensor], num_layers: int, directions: int, dtype: torch.dtype | None
) -> tuple[Mode, Tensor]:
    """Pack the weights of all layers.

    Args:
        name: the kind of network in error messages.
        cell: the name of its cell.
        weights: the weights of all layers, in torch.nn's order.
        num_layers: how many layers are stacked.
        directions: 1 or 2.
        dtype: the dtype of the packed weights; None for their own.

    Returns:
        The mode of a network that computes with the packed weights, whatever weights it is given, and the packed
        weights.
    """
    with torch.no_grad():
        packed = ops.recurrent_freeze(cell, weights, num_layers, directions, dtype)
    return mode_of(name, cell)._replace(layer=partial(_layers, packed), runs_all_layers=True, plain_cell=None), packed


def _layers(
    packed: Tensor,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """Run all layers of a network; see :class:`fused_rnn.functional.recurrent.Mode` for arguments and results."""
    output, finals, history = ops.recurrent_frozen(
        input, states, packed, batch_sizes, lengths, return_states, resets, reset_states
    )
    return output, *finals, *(like_output(values, output) for values in history)


def is_traced() -> bool:
    """Return whether a call is compiled, exported or traced, so that it must compute with ordinary weights."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def check_call(module: object, weights: Sequence[Tensor], input: Any) -> None:
    """Check that nothing is asked of a frozen network that it cannot do.

    The operator checks that no gradient of its own arguments is needed.

    Args:
        module: the layer or cell, whose class the errors name.
        weights: the weights that were packed.
        input: the input of the call, a Tensor or a PackedSequence.

    Raises:
        RuntimeError: a gradient is needed, or autocast is enabled.
        NotImplementedError: a transform of torch.func or forward mode is active.
    """
    if torch.is_grad_enabled():
        for weight in weights:
            if weight.requires_grad:
                raise RuntimeError(
                    f"a frozen {type(module).__name__} computes no gradients: call it under torch.inference_mode() or "
                    "torch.no_grad(), or unfreeze() it"
                )
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        raise NotImplementedError(
            f"a frozen {type(module).__name__} has no derivatives and no vmap: unfreeze() it for torch.func"
        )
    if torch._C._is_any_autocast_enabled() and autocast_enabled(input.data.device):
        raise RuntimeError(
            f"a frozen {type(module).__name__} computes in the dtype that it was frozen in, so it cannot run under "
            "autocast"
        )


find_change = ops.find_change


def run_plain(
    input: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor], packed: Tensor, batch_first: bool
) -> tuple[Tensor, ...] | None:
    """Run all layers, or one step of a cell, without Python, for the usual call of a served model, which is short.

    Args:
        input: ``[time, batch, input_size]``, with ``batch_first`` ``[batch, time, input_size]``, or for one step
            ``[batch, input_size]``.
        states: the initial states; None for zero.
        weights: the weights that were packed.
        packed: the packed weights.
        batch_first: whether the batch comes first in input and output.

    Returns:
        The output and the final states; None if the general way must be taken, which checks what the call asks for and
        raises the exceptions of arguments that do not fit.
    """
    return ops.plain_frozen(input, states, weights, packed, batch_first)


def run_frozen_layers(
    mode: Mode, input: Any, states: Sequence[Tensor] | None, *args: Any, **options: Any
) -> tuple[Any, ...]:
    """Run all layers; see :func:`fused_rnn.functional.recurrent.run`, but ``mode`` is of :func:`freeze_weights`."""
    _check_states(mode, states)
    return run(mode, input, states, *args, **options)


def run_frozen_cell(
    mode: Mode,
    input: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    reset: Tensor | None,
    reset_states: Sequence[Tensor] | None,
) -> tuple[Tensor, ...]:
    """Run one step; see :func:`fused_rnn.functional.recurrent.run_cell`."""
    _check_states(mode, states)
    weight_ih, weight_hh, *biases = weights
    bias_ih, bias_hh = biases or (None, None)
    return run_cell(mode, input, states, weight_ih, weight_hh, bias_ih, bias_hh, reset, reset_states)


def _check_states(mode: Mode, states: Sequence[Tensor] | None) -> None:
    if states is not None and len(states) != mode.cell.states:
        raise RuntimeError(f"{mode.name.lower()} expects {mode.cell.states} hidden states, got {len(states)}")
