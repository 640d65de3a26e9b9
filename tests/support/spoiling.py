"""Makes a peer's result wrong, for tests of the benchmarks' checks."""

from dataclasses import replace

from benchmarks.cases import Mode
from benchmarks.problem import Outputs, Peer


def spoil(peer: Peer, index: int, error: float) -> Peer:
    """Return `peer` with the last element of its tensor `index` changed by `error` times the largest value."""

    def spoiled(mode: Mode) -> Outputs:
        outputs = [tensor.detach().clone() for tensor in peer.prepare(mode)()]
        outputs[index][(-1,) * outputs[index].dim()] += error * outputs[index].abs().max()
        return tuple(outputs)

    return replace(peer, prepare=lambda mode: lambda: spoiled(mode))
