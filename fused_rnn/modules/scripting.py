"""The refusal of torch.jit.script, which all layers and cells share."""

from typing import NoReturn

import torch


def refuse_script(module: torch.nn.Module) -> NoReturn:
    """Raise the error that says what to do instead of torch.jit.script.

    torch.jit.script calls it as the method ``__prepare_scriptable__`` of a module. It cannot compile the functions
    below a layer, because they take arguments that TorchScript has no types for.
    """
    name = type(module).__name__
    raise NotImplementedError(
        f"torch.jit.script cannot compile fused_rnn's {name}: use torch.jit.trace, or put torch.nn's layer back by "
        "fused_rnn.revert(model) first, where there is one"
    )
