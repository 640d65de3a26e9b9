"""The operators ``lstm`` and ``lstm_backward``: one LSTM layer with all its directions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_rnn.ops.shapes import check_device, directions_of, gradient, gradients, saved, saved_gates

_lstm = torch.ops.fused_rnn.lstm.default
_lstm_backward = torch.ops.fused_rnn.lstm_backward.default


def lstm(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run a sequence through one LSTM layer; :func:`fused_rnn.reference.lstm` defines the result.

    Args:
        input: ``[time, batch, input_size]``, or ``[rows, input_size]`` if packed; or, for one step, ``[batch,
            input_size]``: then nothing but ``gates`` and ``cells`` has the dimensions ``time`` and ``directions``.
        h0: ``[directions, batch, output_size]``, where ``output_size`` is ``proj_size`` or ``hidden_size``.
        c0: ``[directions, batch, hidden_size]``.
        weights: for each direction ``weight_ih [4 * hidden_size, input_size]``, ``weight_hh [4 * hidden_size,
            output_size]``, then with biases ``bias_ih, bias_hh [4 * hidden_size]``, then with a projection
            ``weight_hr [proj_size, hidden_size]``.
        batch_sizes: None, or for a packed input ``[time]``, int64, on the CPU, not increasing.
        lengths: None, or for a padded input the steps of each sequence, ``[batch]``, int64, on the device of ``input``,
            0 to time, in any order.
        save_states: whether to return what :func:`lstm_backward` needs.

    Returns:
        ``output``: ``[time, batch, directions * output_size]`` or ``[rows, directions * output_size]``;
        ``h_n``: ``[directions, batch, output_size]``;
        ``c_n``: ``[directions, batch, hidden_size]``;
        ``gates``: i, f, g and o after their activations, ``[directions, rows, 4 * hidden_size]``;
        ``cells``: c of every step, ``[directions, rows, hidden_size]``.
        ``gates`` and ``cells`` are float64 for float64 input, else float32, and of shape ``[0]`` if not saved. With
        ``lengths`` ``gates`` is in an order that only the backward pass knows, and ``cells`` is zero in the padding.
    """
    return _lstm(input, h0, c0, weights, batch_sizes, lengths, save_states)


def lstm_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    input_grad: bool,
    state_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Differentiate :func:`lstm`.

    Args:
        grad_output: the gradient of ``output``, or None for zero.
        grad_h_n: the gradient of ``h_n``, or None for zero.
        grad_c_n: the gradient of ``c_n``, or None for zero.
        grad_cells: the gradient of ``cells``, or None for zero.
        input: as given to :func:`lstm`.
        h0: as given to :func:`lstm`.
        c0: as given to :func:`lstm`.
        weights: as given to :func:`lstm`.
        batch_sizes: as given to :func:`lstm`.
        lengths: as given to :func:`lstm`.
        output: as returned by :func:`lstm`.
        gates: as returned by :func:`lstm`.
        cells: as returned by :func:`lstm`.
        input_grad: whether the gradient of ``input`` is wanted.
        state_grad: whether the gradients of ``h0`` and ``c0`` are wanted.
        weight_grad: whether the gradients of ``weights`` are wanted.

    Returns:
        The gradients of ``input``, ``h0``, ``c0`` and ``weights``, of their shapes; of shape ``[0]``, and an empty list
        for the weights, where they are not wanted.
    """
    return _lstm_backward(
        grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes, lengths,
        output, gates, cells,
        input_grad, state_grad, weight_grad,
    )  # fmt: skip


@torch.library.register_fake("fused_rnn::lstm")
def _(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_device(input, h0, c0, *weights)
    directions, hidden_size = directions_of(c0), c0.shape[-1]
    return (
        input.new_empty(*input.shape[:-1], directions * h0.shape[-1]),
        input.new_empty(h0.shape),
        input.new_empty(c0.shape),
        saved_gates(input, directions, hidden_size, save_states),
        saved(input, directions, hidden_size, save_states),
    )


@torch.library.register_fake("fused_rnn::lstm_backward")
def _(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    input_grad: bool,
    state_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    return (
        gradient(input, input_grad),
        gradient(h0, state_grad),
        gradient(c0, state_grad),
        gradients(weights, weight_grad),
    )
