"""A case with its data and the peers that compute it, and the check of every peer before it is timed.

All peers are compared with the reference in float64. In half precision the reference gets the rounded weights and
inputs, since their rounding is not an error of a peer.
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

# The largest error of a peer, relative to the largest value, which only shows that it computes the same function. In
# half precision torch.nn rounds every intermediate result, which adds up to about 3 eps.
PEER_TOLERANCE: dict[Dtype, float] = {
    "float32": 1e-4,
    "bfloat16": 16 * torch.finfo(torch.bfloat16).eps,
    "float16": 16 * torch.finfo(torch.float16).eps,
}
# Our error may be twice that of torch in the same dtype, plus a floor for cases where torch happens to be exact: some
# rounding errors of sums in float32, the single rounding of the result in half precision.
ROUNDING_FACTOR = 2.0
ROUNDING_FLOOR: dict[Dtype, float] = {
    "float32": 32 * torch.finfo(torch.float32).eps,
    "bfloat16": torch.finfo(torch.bfloat16).eps / 2,
    "float16": torch.finfo(torch.float16).eps / 2,
}


class CheckError(Exception):
    """The result of a peer differs from that of the reference."""


@dataclass(frozen=True)
class Peer:
    """One way to compute a case.

    Attributes:
        name: The name in tables and charts.
        prepare: Returns the call that is timed, which owns all data that only it needs. Forward calls run without
            gradients.
        modes: The modes that the peer supports.
        alone: Whether the peer must be timed alone, since it slows down others.
        compared: Whether its results are compared with the reference; not if it computes something else.
    """

    name: str
    prepare: Callable[[Mode], Compute]
    modes: tuple[Mode, ...] = ("forward", "training")
    alone: bool = False
    compared: bool = True

    def run_once(self, mode: Mode) -> Outputs:
        """The result of one call."""
        with torch.set_grad_enabled(mode == "training"):
            return self.prepare(mode)()


@dataclass(frozen=True)
class Problem:
    """All peers of one case.

    Attributes:
        peers: The peers, with `FUSED` among them, which have the same weights and input.
        oracle: The reference in float64.
        yardstick: The name of the peer whose rounding error is the standard for the case's dtype.
        forward_names: The names of a forward call's results; a training call returns the first one and all gradients.
        gradient_names: The names of a training call's gradients.
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
    """Make a peer whose gradients autograd computes.

    Args:
        name: The name in tables and charts.
        compute: The forward call, whose first output is differentiated.
        leaves: The tensors with respect to which it is differentiated.
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

    For each tensor that a call returns, the fused kernels must have max|ours - ref64| <= 2 * max|yardstick - ref64| +
    floor * max|ref64|, and the other peers max|theirs - ref64| <= tolerance * max|ref64|. In float32 the floor is 32
    eps and the tolerance 1e-4; in half precision the floor is eps / 2 and the tolerance 16 eps.

    Args:
        case: The case, for the error message.
        problem: The peers and the reference.
        mode: Whether to check the outputs of a forward call, or the output and all gradients of a training call.
        rounding: Whether to compare the fused kernels' rounding errors with the yardstick's; if not, their bound is
            that of the other peers.

    Raises:
        CheckError: A peer's error exceeds its bound; the message names case, peer, tensor, error and bound.
    """
    expected = problem.oracle.run_once(mode)
    scales = [_largest(tensor) for tensor in expected]
    names = problem.names(mode)
    yardstick = next(peer for peer in problem.peers if peer.name == problem.yardstick)
    round_offs = _errors(yardstick, mode, expected)
    for peer in problem.peers:
        if mode not in peer.modes or not peer.compared:
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
    """The largest error of each tensor, infinite where the shapes differ."""
    return [
        _largest(actual.double() - tensor) if actual.shape == tensor.shape else float("inf")
        for actual, tensor in zip(peer.run_once(mode), expected, strict=True)
    ]


def _largest(tensor: Tensor) -> float:
    return tensor.detach().abs().max().item()
