"""Names, nonlinearities and helper functions for the tests of conversions."""

from typing import Any

import torch
from cases import flatten
from torch import Tensor, nn

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
NONLINEARITIES = {"RNN": "tanh", "RNN_RELU": "relu"}
"""The nonlinearity of each kind of layer that can choose one; the kinds are those of ``cases.CELLS``."""
INPUT = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def layer(name: str, package: Any = nn) -> nn.Module:
    return getattr(package, name)(4, 8).double()


def run(module: nn.Module) -> dict[str, Tensor]:
    """Return outputs and gradients of a layer or cell, for a fixed input."""
    input = INPUT[0] if isinstance(module, nn.RNNCellBase) else INPUT
    outputs = flatten(module(input))
    grads = torch.autograd.grad([out.sum() for out in outputs], list(module.parameters()))
    named = zip((name for name, _ in module.named_parameters()), grads, strict=True)
    return {**{f"out{i}": out.detach() for i, out in enumerate(outputs)}, **dict(named)}
