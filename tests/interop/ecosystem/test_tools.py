"""What docs/using.md says of tools that compare the class of a layer is true."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_rnn

pytestmark = pytest.mark.ecosystem


class Model(nn.Module):
    """A layer of torch.nn and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.lstm(input)[0])


@pytest.mark.parametrize("keep_isinstance", [False, True])
def test_thop_counts_if_it_is_told_to(keep_isinstance: bool) -> None:
    import thop

    def count(model: nn.Module, **options: Any) -> float:
        return thop.profile(model, (torch.randn(3, 5, 4),), verbose=False, **options)[0]

    model, expected = Model(), count(Model())
    fused_rnn.convert(model, keep_isinstance=keep_isinstance)
    assert count(model) == 3 * 5 * 8 * 2  # the head alone
    assert count(model, custom_ops={type(model.lstm): thop.rnn_hooks.count_lstm}) == expected
    fused_rnn.revert(model)
    assert count(model) == expected


@pytest.mark.parametrize("keep_isinstance", [False, True])
def test_opacus_finds_the_layers_of_a_reverted_model(keep_isinstance: bool) -> None:
    from opacus.layers import DPLSTM
    from opacus.validators import ModuleValidator

    model = Model()
    fused_rnn.convert(model, keep_isinstance=keep_isinstance)
    assert ModuleValidator.validate(model) == []
    fused_rnn.revert(model)
    assert len(ModuleValidator.validate(model)) == 1
    assert isinstance(ModuleValidator.fix(model).lstm, DPLSTM)
