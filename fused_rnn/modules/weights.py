"""The weights of a recurrent layer as they are now, whoever has replaced them."""

from typing import Any

import torch
from torch import Tensor


def current_weights(module: torch.nn.RNNBase) -> list[Tensor]:
    """Return the weights of all layers and directions, in torch.nn's order.

    They are looked up anew in each call: functional_call, parametrizations and pruning swap them, and a list kept from
    an earlier call, such as torch.nn's own, would be stale. The dictionary is asked first since it answers sooner.
    """
    parameters: dict[str, Any] = module._parameters
    return [parameters[name] if name in parameters else getattr(module, name) for name in module._flat_weights_names]
