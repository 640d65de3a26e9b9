"""A case made concrete: its data, the peers that compute it, and the check of every peer before it is timed.

All peers are compared with the reference in float64. In half precision the reference is evaluated on the rounded
weights and inputs, because the rounding of these is no peer's error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import MODE_TITLES, Case, Dtype, Mode

Outputs = tuple[Tensor, ...]
Compute = Callable[[], Outputs]

FUSED = "fused"

# Peers have to compute the same thing; how well they round is not ours to judge. In half precision torch.nn rounds
# every intermediate result, which adds up to about 3 eps of the largest value.
PEER_TOLERANCE: dict[Dtype, float] = {
    "float32": 1e-4,
    "bfloat16": 16 * torch.finfo(torch.bfloat16).eps,
    "float16": 16 * torch.finfo(torch.float16).eps,
}
# Our error may be twice that of torch in the same dtype, and a little more where torch happens to be exact: in float32
# some roundings of sums, in half precision the one rounding of the result.
ROUNDING_FACTOR = 2.0
ROUNDING_FLOOR: dict[Dtype, float] = {
    "float32": 32 * torch.finfo(torch.float32).eps,
    "bfloat16": torch.finfo(torch.bfloat16).eps / 2,
    "float16": torch.finfo(torch.float16).eps / 2,
}


class CheckError(Exception):
    """A peer computes something else than the reference."""


@dataclass(frozen=True)
class Peer:
    """One way to compute a case.

    Attributes:
        name: The name in tables and charts.
        prepare: Returns the call that is timed. Whatever the call needs lives as long as the call and no longer.
            Forward calls run without gradients.
        modes: The modes that it can do.
        alone: Whether it slows down whatever runs beside it.
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
        peers: `FUSED` is among them; all have the same weights and the same input.
        oracle: The reference in float64.
        yardstick: The name of the peer whose rounding error is what can be expected of the case's dtype.
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
        name: The name in tables and charts.
        compute: The forward call; the gradients are those of its first output.
        leaves: The tensors to differentiate by.
        grad_output: The gradient of the first output, of its shape.

    Returns:
        The peer.
    """

    def train() -> Outputs:
        output = compute()[0]
        return (output, *torch.autograd.grad(output, leaves, grad_output))

    return Peer(name, lambda mode: train if mode == "training" else compute)


def check(case: Case, problem: Problem, mode: Mode, *, rounding: bool = True) -> None:
    """Compare every peer with the reference.

    For the fused kernels the bound is max|ours - ref64| <= 2 * max|yardstick - ref64| + floor * max|ref64|, for the
    peers max|theirs - ref64| <= tolerance * max|ref64|; both for each tensor that a call returns. The floor is 32 eps
    in float32 and eps / 2 in half precision, the tolerance 1e-4 and 16 eps.

    Args:
        case: The case, which the message names.
        problem: The peers, and the reference.
        mode: Whether to check the outputs of a forward call, or the output and all gradients of a training call.
        rounding: Whether the fused kernels have to round as well as the yardstick; if not, their bound is that of the
            peers.

    Raises:
        CheckError: Names the case, the peer, the tensor, the error and the bound.
    """
    expected = problem.oracle.run_once(mode)
    scales = [_largest(tensor) for tensor in expected]
    names = problem.names(mode)
    yardstick = next(peer for peer in problem.peers if peer.name == problem.yardstick)
    round_offs = _errors(yardstick, mode, expected)
    for peer in problem.peers:
        if mode not in peer.modes:
            continue
        errors = _errors(peer, mode, expected)
        for name, error, scale, round_off in zip(names, errors, scales, round_offs, strict=True):
            bound = PEER_TOLERANCE[case.dtype] * scale
            if rounding and peer.name.startswith(FUSED):
                bound = min(bound, ROUNDING_FACTOR * round_off + ROUNDING_FLOOR[case.dtype] * scale)
            if not error <= bound:  # unlike error > bound, this also catches NaN
                raise CheckError(
                    f"{case.group} {case.label}, {MODE_TITLES[mode]}: {name} of {peer.name} is {error:.2e} away from "
                    f"the reference in float64 (largest value {scale:.2e}), allowed are {bound:.2e}"
                )


def _errors(peer: Peer, mode: Mode, expected: Outputs) -> list[float]:
    """The largest difference of each tensor, infinite where the shapes differ."""
    return [
        _largest(actual.double() - tensor) if actual.shape == tensor.shape else float("inf")
        for actual, tensor in zip(peer.run_once(mode), expected, strict=True)
    ]


def _largest(tensor: Tensor) -> float:
    return tensor.detach().abs().max().item()
