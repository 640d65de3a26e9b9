"""All layers and cells of the package, each with an oracle that has the same weights."""

from collections.abc import Callable
from typing import Any

import torch
from cases import KINDS, flatten
from torch import Tensor

import fused_rnn
from fused_rnn import reference

# The modules, and the shape of an input for each.
SHAPES = {
    **dict.fromkeys(KINDS, (3, 2, 3)), **{f"{kind}Cell": (2, 3) for kind in KINDS},
    "MaskedConv1d": (2, 2, 5), "MaskedConv2d": (2, 2, 3, 3),
}  # fmt: skip
NAMES = list(SHAPES)


class ReferenceConv2d(fused_rnn.MaskedConv2d):
    """The masked convolution, computed by the reference."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        assert residual is None
        images = input if input.dim() == 4 else input[None]
        output = reference.masked_conv2d(images, self.weight, self.bias, self.mask_type, self.data_channels)
        return output if input.dim() == 4 else output[0]


class ReferenceConv1d(fused_rnn.MaskedConv1d):
    """The causal convolution, computed by the reference."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        assert residual is None
        sequences = input if input.dim() == 3 else input[None]
        output = reference.masked_conv1d(sequences, self.weight, self.bias, self.mask_type, self.data_channels)
        return output if input.dim() == 3 else output[0]


CONVOLUTIONS: dict[str, tuple[type[torch.nn.Module], type[torch.nn.Module]]] = {
    "MaskedConv1d": (fused_rnn.MaskedConv1d, ReferenceConv1d),
    "MaskedConv2d": (fused_rnn.MaskedConv2d, ReferenceConv2d),
}


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """Return one of our modules and its oracle: torch.nn's module, or the reference if torch.nn has none."""
    if name in CONVOLUTIONS:
        ours, theirs = (cls(2, 2, 3, "B", 2) for cls in CONVOLUTIONS[name])
    else:
        form: dict[str, Any] = {"num_layers": 2, "bidirectional": True} if name in KINDS else {}
        ours, theirs = getattr(fused_rnn, name)(3, 2, **form), getattr(torch.nn, name)(3, 2, **form)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def random(*shape: int) -> Tensor:
    """Return random numbers in float64."""
    return torch.randn(shape, dtype=torch.float64)


def vector(module: Callable[..., Any], *args: Any) -> Tensor:
    """Return all outputs of a module as one vector, with a different weight for each element."""
    values = torch.cat([out.flatten() for out in flatten(module(*args))])
    return values * torch.linspace(1, 2, len(values), dtype=values.dtype)
