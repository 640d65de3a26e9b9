"""How a test of the benchmark's checks makes a result wrong."""

from dataclasses import replace

from benchmarks.cases import Mode
from benchmarks.problem import Outputs, Peer


def spoil(peer: Peer, index: int, error: float) -> Peer:
    """`peer` with one element of its tensor number `index` changed by `error`, relative to the largest."""

    def spoiled(mode: Mode) -> Outputs:
        outputs = [tensor.detach().clone() for tensor in peer.prepare(mode)()]
        outputs[index][(-1,) * outputs[index].dim()] += error * outputs[index].abs().max()
        return tuple(outputs)

    return replace(peer, prepare=lambda mode: lambda: spoiled(mode))
