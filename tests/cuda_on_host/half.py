"""The roundings that half precision cannot do without, as an oracle of what they cost in accuracy; all else in float32.

The matrix instructions take only half precision, and what is saved for backward is saved in it to be half as large. So
these are rounded, and nothing else: the input's part of the gates' sums; the hidden values that blocks hand to one
another (but not the LSTM's cell state, nor the hidden value that a GRU adds the next one to); what backward reads, the
cell states among it, but not what forward goes on with; and the gradients of the gates' sums.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


def half_cell(name: str, dtype: torch.dtype) -> Callable[..., tuple[Tensor, ...]]:
    """Return the step of a cell, for tensors in float32, with those values rounded to ``dtype``."""

    def rounded(values: Tensor) -> Tensor:
        return values + (values.to(dtype).float() - values).detach()

    def cell(input: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, *biases = weights
        bias_ih, bias_hh = biases or (torch.zeros(len(weight_ih)), torch.zeros(len(weight_ih)))
        hidden = rounded(state[0])
        of_input, recurrent = rounded(linear(input, weight_ih)) + bias_ih, linear(hidden, weight_hh, bias_hh)
        if name == "lstm":
            new, cell = LSTMStep.apply(of_input + recurrent, state[1], dtype)
            return rounded(new), cell
        if name.startswith("rnn"):
            return (rounded(RNNStep.apply(of_input + recurrent, name == "rnn_relu", dtype)),)
        return (GRUStep.apply(of_input, recurrent, state[0], dtype),)

    return cell


class LSTMStep(torch.autograd.Function):
    """From the gates' sums and the cell to the new hidden value and cell."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, before: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        i, f, g, o = sums.chunk(4, dim=1)
        gates = [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
        cell = gates[1] * before + gates[0] * gates[2]
        ctx.dtype = dtype
        ctx.save_for_backward(*(values.to(dtype).float() for values in (before, cell, *gates)))
        return gates[3] * cell.tanh(), cell

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor, grad_cell: Tensor) -> tuple[Tensor | None, ...]:
        before, cell, i, f, g, o = ctx.saved_tensors
        grad_cell = grad_cell + grad_hidden * o * (1 - cell.tanh() ** 2)
        of_output = grad_hidden * cell.tanh() * o * (1 - o)
        parts = [grad_cell * g * i * (1 - i), grad_cell * before * f * (1 - f), grad_cell * i * (1 - g * g), of_output]
        return torch.cat(parts, dim=1).to(ctx.dtype).float(), grad_cell * f, None


class RNNStep(torch.autograd.Function):
    """From the sum to the new hidden value."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
        hidden = sums.relu() if relu else sums.tanh()
        ctx.relu, ctx.dtype = relu, dtype
        ctx.save_for_backward(hidden.to(dtype).float())
        return hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (hidden,) = ctx.saved_tensors
        of_sum = torch.where(hidden <= 0, 0, grad) if ctx.relu else grad * (1 - hidden * hidden)
        return of_sum.to(ctx.dtype).float(), None, None


class GRUStep(torch.autograd.Function):
    """From the two parts of the gates' sums and the hidden value to the new hidden value."""

    @staticmethod
    def forward(ctx: Any, of_input: Tensor, recurrent: Tensor, before: Tensor, dtype: torch.dtype) -> Tensor:
        (r, z, n), (hr, hz, hn) = of_input.chunk(3, dim=1), recurrent.chunk(3, dim=1)
        r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
        n = (n + r * hn).tanh()
        ctx.dtype = dtype
        ctx.save_for_backward(*(values.to(dtype).float() for values in (r, z, n, hn, before)))
        return n + z * (before - n)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        r, z, n, hn, before = ctx.saved_tensors
        grad_n = grad * (1 - z) * (1 - n * n)
        parts = [grad_n * hn * r * (1 - r), grad * (before - n) * z * (1 - z), grad_n, grad_n * r]
        of_r, of_z, of_n, of_hn = (part.to(ctx.dtype).float() for part in parts)
        return torch.cat([of_r, of_z, of_n], dim=1), torch.cat([of_r, of_z, of_hn], dim=1), grad * z, None
