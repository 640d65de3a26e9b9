"""The gated activation, as a function and as a module, against its formula channel by channel."""

from itertools import product

import pytest
import torch
from comparing import assert_accurate

from fused_rnn import GatedActivation, functional


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (5, 1), (3, 3), (6, 3), (4, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_formula(channels: int, groups: int, layout: torch.memory_format, device: str) -> None:
    input = torch.randn(2, 2 * channels, 3, 5, device=device, dtype=torch.float64).contiguous(memory_format=layout)
    output = GatedActivation(groups).to(device)(input)
    each = channels // groups
    for group, channel in product(range(groups), range(each)):
        a = input[:, group * 2 * each + channel]
        b = input[:, group * 2 * each + each + channel]
        assert_accurate(output[:, group * each + channel], a.tanh() / (1 + (-b).exp()))
    assert output.shape == (2, channels, 3, 5)
    assert output.is_contiguous(memory_format=layout)


def test_gradient() -> None:
    input = torch.randn(2, 12, 2, 3, dtype=torch.float64, requires_grad=True)
    for groups in (1, 3):
        assert torch.autograd.gradcheck(lambda input, groups=groups: functional.gated_activation(input, groups), input)


def test_errors() -> None:
    with pytest.raises(ValueError, match="input must have 4 dimensions"):
        functional.gated_activation(torch.randn(4, 3, 3))
    for channels, groups in ((3, 1), (8, 3), (4, 0)):
        with pytest.raises(ValueError, match="multiple of 2 \\* data_channels"):
            functional.gated_activation(torch.randn(1, channels, 3, 3), groups)
    with pytest.raises(ValueError, match="data_channels must be positive"):
        GatedActivation(0)


def test_repr() -> None:
    assert repr(GatedActivation()) == "GatedActivation()"
    assert repr(GatedActivation(3)) == "GatedActivation(data_channels=3)"
