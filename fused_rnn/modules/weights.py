"""The present weights of a recurrent layer or cell, even if they have been replaced."""

from collections.abc import Iterable
from typing import Any

import torch

CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def current_weights(module: torch.nn.Module, names: Iterable[str]) -> list[Any]:
    """Return the weights called ``names``; None for a bias that a cell does not have.

    They are looked up in each call, because functional_call, parametrizations and pruning replace them, which a stored
    list such as torch.nn's would miss. The dictionary of parameters is tried first since it is faster than getattr.
    """
    parameters: dict[str, Any] = module._parameters
    return [parameters[name] if name in parameters else getattr(module, name) for name in names]
