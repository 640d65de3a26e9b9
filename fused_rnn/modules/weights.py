"""The weights of a recurrent layer or cell as they are now, whoever has replaced them."""

from collections.abc import Iterable
from typing import Any

import torch

CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def current_weights(module: torch.nn.Module, names: Iterable[str]) -> list[Any]:
    """Return the weights of ``names``; None for a bias that a cell does without.

    They are looked up anew in each call: functional_call, parametrizations and pruning swap them, and a list kept from
    an earlier call, such as torch.nn's own, would be stale. The dictionary is asked first since it answers sooner.
    """
    parameters: dict[str, Any] = module._parameters
    return [parameters[name] if name in parameters else getattr(module, name) for name in names]
