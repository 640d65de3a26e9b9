"""Nothing is timed before it is right: every peer of a case is held against the reference in float64.

In half precision the reference is evaluated on the rounded weights and inputs: rounding these is nobody's error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import MODE_TITLES, Case, Dtype, Mode
from benchmarks.problem import FUSED, Outputs, Peer, Problem

# Peers have to compute the same thing; how well they round is their own matter (in half precision torch.nn rounds every
# intermediate result, which adds up to about 3 eps of the largest value).
PEER_TOLERANCE: dict[Dtype, float] = {
    "float32": 1e-4,
    "bfloat16": 16 * torch.finfo(torch.bfloat16).eps,
    "float16": 16 * torch.finfo(torch.float16).eps,
}
# Ours may round as torch in the same dtype does, and a little more where torch happens to be exact: in float32 some
# roundings of sums, in half precision the one rounding of the result.
ROUNDING_FACTOR = 2.0
ROUNDING_FLOOR: dict[Dtype, float] = {
    "float32": 32 * torch.finfo(torch.float32).eps,
    "bfloat16": torch.finfo(torch.bfloat16).eps / 2,
    "float16": torch.finfo(torch.float16).eps / 2,
}


class CheckError(Exception):
    """A peer computes something else than the reference."""


def check(case: Case, problem: Problem, mode: Mode, *, rounding: bool = True) -> None:
    """Hold every peer against the reference.

    For the fused kernels the bound is max|ours - ref64| <= 2 * max|yardstick - ref64| + floor * max|ref64|, for the
    peers max|theirs - ref64| <= tolerance * max|ref64|; both for each tensor that a call returns. The floor is 32 eps
    in float32 and eps / 2 in half precision, the tolerance 1e-4 and 16 eps.

    Args:
        case: Named in the message.
        problem: The peers, and the reference.
        mode: Whether to check the outputs of a forward call, or the output and all gradients of a training call.
        rounding: Whether the fused kernels have to round as well as the yardstick; without, they are held to the
            tolerance of the peers.

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
            if not error <= bound:  # so written, NaN fails
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
