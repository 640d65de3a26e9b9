"""torch.jit.script, which no layer of this package supports: the error says what to do instead."""

import pytest
import torch
from every_module import NAMES

import fused_rnn


@pytest.mark.parametrize("name", [*NAMES, "GRUResetBefore", "GRUCellResetBefore"])
def test_script_says_what_to_do_instead(name: str) -> None:
    modules = fused_rnn.modules
    layer = getattr(modules, name)(4, 6, *([3, "B"] if name.startswith("Masked") else []))
    for model in (layer, torch.nn.Sequential(torch.nn.Identity(), layer)):
        with pytest.raises(
            NotImplementedError, match=rf"torch.jit.script cannot compile .*{name}: use torch.jit.trace"
        ):
            torch.jit.script(model)


def test_script_of_converted_models() -> None:
    class Own(torch.nn.GRU):
        pass

    for cls in (torch.nn.GRU, torch.nn.GRUCell, Own):
        model = torch.nn.Sequential(cls(4, 6))
        fused_rnn.convert(model, subclasses=True)
        with pytest.raises(NotImplementedError, match="revert"):
            torch.jit.script(model)
        fused_rnn.revert(model)
        if cls is not Own:  # which TorchScript cannot compile as torch.nn's subclass either
            torch.jit.script(model)
