"""A case made concrete: its data, the peers that compute it, and the reference in float64 that all are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Mode

Outputs = tuple[Tensor, ...]
Compute = Callable[[], Outputs]

FUSED = "fused"


@dataclass(frozen=True)
class Peer:
    """One way to compute a case.

    Attributes:
        name: What tables and charts call it.
        prepare: Gives the call to be timed. What the call needs lives as long as the call, no longer. Forward calls run
            without gradients.
        modes: What it can do.
        alone: Whether it disturbs whatever runs beside it.
    """

    name: str
    prepare: Callable[[Mode], Compute]
    modes: tuple[Mode, ...] = ("forward", "training")
    alone: bool = False

    def run_once(self, mode: Mode) -> Outputs:
        """The result of one call."""
        with torch.set_grad_enabled(mode == "training"):
            return self.prepare(mode)()


@dataclass(frozen=True)
class Problem:
    """All peers of one case.

    Attributes:
        peers: `FUSED` is among them; all have the same weights and read the same input.
        oracle: The reference in float64.
        yardstick: The name of the peer whose rounding error is what the case's dtype can be expected to give.
        forward_names: What a forward call returns; a training call returns the first of these and all gradients.
        gradient_names: The gradients that a training call returns.
    """

    peers: Sequence[Peer]
    oracle: Peer
    yardstick: str
    forward_names: Sequence[str]
    gradient_names: Sequence[str]

    def names(self, mode: Mode) -> list[str]:
        """The name of each tensor that a call returns."""
        if mode == "forward":
            return list(self.forward_names)
        return [self.forward_names[0], *(f"gradient of {name}" for name in self.gradient_names)]


def torch_peer(name: str, compute: Compute, leaves: Sequence[Tensor], grad_output: Tensor) -> Peer:
    """A peer that autograd differentiates.

    Args:
        name: What tables and charts call it.
        compute: The forward call; the gradients are those of its first output.
        leaves: What to differentiate by.
        grad_output: The gradient of the first output, of its shape.

    Returns:
        The peer.
    """

    def train() -> Outputs:
        output = compute()[0]
        return (output, *torch.autograd.grad(output, leaves, grad_output))

    return Peer(name, lambda mode: train if mode == "training" else compute)
