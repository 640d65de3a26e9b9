"""The recurrent product in tf32, or every product, as an oracle of what it costs in accuracy."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fused_rnn.reference.rnn_cell import NONLINEARITIES


def round_to_tf32(values: Tensor) -> Tensor:
    """Round float32 to the 10 bits of mantissa that tf32 has, ties away from zero."""
    return torch.where(values.isfinite(), ((values.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32), values)


class Tf32Linear(torch.autograd.Function):
    """``linear`` with what is multiplied rounded to tf32, but for the weight's gradient only ``everywhere``."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, everywhere: bool) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.everywhere = everywhere
        return linear(round_to_tf32(input), round_to_tf32(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        input, weight = ctx.saved_tensors
        rounded = round_to_tf32(grad)
        return (
            rounded @ round_to_tf32(weight),
            rounded.T @ round_to_tf32(input) if ctx.everywhere else grad.T @ input,
            None,
        )


def tf32_cell(name: str, everywhere: bool = False) -> Callable[..., tuple[Tensor, ...]]:
    """Return the step of a cell with its recurrent product in tf32, or with every product."""

    def cell(input: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        weight_ih, weight_hh, *biases = weights
        bias_ih, bias_hh = biases or (torch.zeros(len(weight_ih)), torch.zeros(len(weight_ih)))
        of_input = Tf32Linear.apply(input, weight_ih, True) if everywhere else linear(input, weight_ih)
        gates = len(weight_hh) // weight_hh.shape[1]
        part = (of_input + bias_ih).chunk(gates, dim=1)
        product = (Tf32Linear.apply(state[0], weight_hh, everywhere) + bias_hh).chunk(gates, dim=1)
        if name.startswith("rnn"):
            return (NONLINEARITIES[name.removeprefix("rnn_")](part[0] + product[0]),)
        if name == "lstm":
            i, f, g, o = (a + b for a, b in zip(part, product, strict=True))
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        r, z = (part[0] + product[0]).sigmoid(), (part[1] + product[1]).sigmoid()
        n = (part[2] + r * product[2]).tanh()
        return ((1 - z) * n + z * state[0],)

    return cell
