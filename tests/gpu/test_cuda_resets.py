"""Resets on a GPU, in CUDA graphs and from the CPU; other tests of resets run on both devices."""

from typing import Any

import pytest
import torch
from cases import KINDS, flatten
from comparing import assert_identical
from on_gpu import captured
from torch import Tensor

import fused_rnn

pytestmark = pytest.mark.needs_cuda

TIME, BATCH, INPUT, HIDDEN = 20, 16, 64, 256


def layer_and_input(kind: str) -> tuple[Any, Tensor]:
    """Return a layer that runs in a persistent kernel of several blocks, and an input."""
    layer = getattr(fused_rnn, kind)(INPUT, HIDDEN, bidirectional=True, device="cuda", dtype=torch.bfloat16)
    return layer, torch.randn(TIME, BATCH, INPUT, device="cuda", dtype=torch.bfloat16)


def random_resets(fraction: float) -> Tensor:
    return torch.rand(TIME, BATCH) < fraction


@pytest.mark.parametrize("kind", KINDS)
def test_resets_in_a_graph(kind: str, path: str) -> None:
    """Resets on the GPU may change between replays, forward and backward."""
    layer, input = layer_and_input(kind)
    resets = random_resets(0.1).cuda()

    def both() -> list[Tensor]:
        output = layer(input, resets=resets)[0]
        return [output, *torch.autograd.grad(output.sum(), list(layer.parameters()))]

    graph, replayed = captured(both)
    for fraction in (0.0, 0.3, 1.0):
        resets.copy_(random_resets(fraction))
        graph.replay()
        torch.cuda.synchronize()
        assert_identical(dict(enumerate(replayed)), dict(enumerate(both())))


@pytest.mark.parametrize("kind", KINDS)
def test_resets_from_the_cpu_do_not_wait(kind: str) -> None:
    layer, input = layer_and_input(kind)
    resets = random_resets(0.2)
    expected = flatten(layer(input, resets=resets.cuda()))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = flatten(layer(input, resets=resets))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_identical(dict(enumerate(found)), dict(enumerate(expected)))
