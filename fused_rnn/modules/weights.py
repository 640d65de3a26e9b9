"""The present weights of a recurrent layer or cell, even if they have been replaced."""

from collections.abc import Iterable
from operator import is_
from typing import Any

import torch

CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def current_weights(module: torch.nn.Module, names: Iterable[str]) -> list[Any]:
    """Return the weights called ``names``; None for a bias that a cell does not have.

    They are looked up in each call, because functional_call, parametrizations and pruning replace them, which a stored
    list such as torch.nn's would miss. The order is that of Python: an attribute of the object itself, which
    meta-learning may set by ``object.__setattr__``, hides the parameter. The two dictionaries are tried first since
    they are faster than getattr.
    """
    attributes = module.__dict__
    parameters: dict[str, Any] = attributes["_parameters"]
    return [
        attributes[name] if name in attributes else parameters[name] if name in parameters else getattr(module, name)
        for name in names
    ]


def layer_weights(module: torch.nn.RNNBase) -> list[Any]:
    """Return the weights of a layer: those of its list ``_flat_weights`` if it was written to, else those by name.

    torch.nn's layers compute with this list, and make it anew if an object behind one of the names has changed since.
    So a list that differs from the weights by name counts only if these are still the ones that it was made from.
    """
    attributes = module.__dict__
    names, listed, parameters = (
        attributes["_flat_weights_names"],
        attributes["_flat_weights"],
        attributes["_parameters"],
    )
    if len(names) == len(listed):
        # Usually the list has the parameters. A loop, which is faster than all(): a small layer takes microseconds.
        for name, weight in zip(names, listed, strict=True):
            if name in attributes or parameters.get(name, module) is not weight:
                break
        else:
            return listed
    weights = current_weights(module, names)
    made_from = [None if reference is None else reference() for reference in module._flat_weight_refs]
    unchanged = len(weights) == len(made_from) and all(map(is_, weights, made_from))
    return listed if unchanged else weights
