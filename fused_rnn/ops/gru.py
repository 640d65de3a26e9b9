"""The operators ``gru`` and ``gru_backward``: one GRU layer with all its directions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_rnn.ops.shapes import check_device, directions_of, gradient, gradients, saved_gates

_gru = torch.ops.fused_rnn.gru.default
_gru_backward = torch.ops.fused_rnn.gru_backward.default


def gru(
    input: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a sequence through one GRU layer; :func:`fused_rnn.reference.gru` defines the result.

    Args:
        input: ``[time, batch, input_size]``, or ``[rows, input_size]`` if packed; or, for one step, ``[batch,
            input_size]``: then nothing but ``gates`` has the dimensions ``time`` and ``directions``.
        h0: ``[directions, batch, hidden_size]``.
        weights: for each direction ``weight_ih [3 * hidden_size, input_size]``, ``weight_hh [3 * hidden_size,
            hidden_size]``, then with biases ``bias_ih, bias_hh [3 * hidden_size]``.
        batch_sizes: None, or for a packed input ``[time]``, int64, on the CPU, not increasing.
        lengths: None, or for a padded input the steps of each sequence, ``[batch]``, int64, on the device of ``input``,
            0 to time, in any order.
        save_states: whether to return what :func:`gru_backward` needs.

    Returns:
        ``output``: ``[time, batch, directions * hidden_size]`` or ``[rows, directions * hidden_size]``;
        ``h_n``: ``[directions, batch, hidden_size]``;
        ``gates``: r, z and n after their activations, and ``W_hn h + b_hn``, ``[directions, rows, 4 * hidden_size]``,
        float64 for float64 input, else float32, and of shape ``[0]`` if not saved; with ``lengths`` in an order that
        only the backward pass knows.
    """
    return _gru(input, h0, weights, batch_sizes, lengths, save_states)


def gru_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor,
    input_grad: bool,
    state_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Differentiate :func:`gru`.

    Args:
        grad_output: the gradient of ``output``, or None for zero.
        grad_h_n: the gradient of ``h_n``, or None for zero.
        input: as given to :func:`gru`.
        h0: as given to :func:`gru`.
        weights: as given to :func:`gru`.
        batch_sizes: as given to :func:`gru`.
        lengths: as given to :func:`gru`.
        output: as returned by :func:`gru`.
        gates: as returned by :func:`gru`.
        input_grad: whether the gradient of ``input`` is wanted.
        state_grad: whether the gradient of ``h0`` is wanted.
        weight_grad: whether the gradients of ``weights`` are wanted.

    Returns:
        The gradients of ``input``, ``h0`` and ``weights``, of their shapes; of shape ``[0]``, and an empty list for the
        weights, where they are not wanted.
    """
    return _gru_backward(
        grad_output, grad_h_n, input, h0, weights, batch_sizes, lengths, output, gates,
        input_grad, state_grad, weight_grad,
    )  # fmt: skip


@torch.library.register_fake("fused_rnn::gru")
def _(
    input: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_device(input, h0, *weights)
    directions, hidden_size = directions_of(h0), h0.shape[-1]
    return (
        input.new_empty(*input.shape[:-1], directions * hidden_size),
        input.new_empty(h0.shape),
        saved_gates(input, directions, hidden_size, save_states),
    )


@torch.library.register_fake("fused_rnn::gru_backward")
def _(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    h0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor,
    input_grad: bool,
    state_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return gradient(input, input_grad), gradient(h0, state_grad), gradients(weights, weight_grad)
