"""That the tests of this folder see faults: each of these, planted into the kernels, changes results or is named."""

from dataclasses import dataclass

import pytest
import torch
from comparing import assert_all_accurate
from cuda_on_host.build import Edit, build_variant
from cuda_on_host.host import OnHost
from cuda_on_host.layer import Layer, by_reference
from cuda_on_host.plans import Division
from cuda_on_host.structs import Kernels

# Fewer kernels to compile.
ONE_TILE: Edit = ("cuda/persistent_plan.h", "batch_tiles <= (backward ? 4 : 8)", "batch_tiles <= 1")
WRONG = "error|NaN or Inf"


@dataclass(frozen=True)
class Fault:
    file: str
    old: str
    new: str
    says: str = WRONG
    """What the failure says."""
    cluster: bool = False
    kernel: str = "forward"
    """Where it is planted: forward or backward."""
    nan: bool = False
    """Whether it takes NaN to see it."""


FAULTS = {
    "no barrier after the products": Fault("cuda/persistent_walk.cuh", "    meet_team();\n    return", "    return"),
    "half a barrier": Fault(
        "cuda/persistent_walk.cuh", "    meet_team();\n    return", "    if (place_.lane % 2) meet_team();\n    return",
        says="waits for threads that do not come|waits for what no block will write",
    ),
    "no meeting after a step": Fault(
        "cuda/persistent_forward.cuh", "      if constexpr (kCluster) this->meet_group();\n", "", cluster=True,
        says=f"{WRONG}|the other block has ended",
    ),
    "tail of a sum left out": Fault(
        "cuda/persistent_plan.h", "divide_up(hidden_size * element_bytes, kChunkBytes)",
        "(hidden_size * element_bytes / kChunkBytes)",
    ),
    "swapped gates": Fault("cuda/lstm.cuh", "{sums[0], sums[1], sums[2]", "{sums[1], sums[0], sums[2]"),
    "memory not filled": Fault("cuda/persistent_launch.cuh", "(params.output, bytes,", "(params.output, bytes - bytes,"),
    "a value that looks missing": Fault(
        "cuda/number.cuh", "bits == Bits(~Bits(0)) ? Bits(bits >> 1) : bits", "bits", nan=True,
        says="waits for what no block will write",
    ),
    "cell of the wrong step": Fault(
        "cuda/persistent_backward.cuh", "has_before ? p_.cells[this->in_saved(row, i, 1)]",
        "has_before ? p_.cells[this->in_saved(needed.row, i, 1)]", kernel="backward",
    ),
    "gradients of one segment twice": Fault(
        "cuda/persistent_backward.cuh", "this->hand_on(mine + gate * segment,", "this->hand_on(mine + gate / 2 * segment,",
        kernel="backward", cluster=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(name: str) -> None:
    fault = FAULTS[name]
    edits = [ONE_TILE, (fault.file, fault.old, fault.new)]
    kernels = Kernels(build_variant(name.replace(" ", "_"), edits, [f"lstm_{fault.kernel}_float32"]))
    layer = Layer("LSTM", time=5, batch=11, hidden_size=20, nan=fault.nan)
    division = Division(units=8, row_warps=2, depth_warps=2)
    host = OnHost(kernels, layer)
    with pytest.raises((AssertionError, RuntimeError), match=fault.says):
        host.forward(division.plan(layer, False, fault.cluster))
        host.backward(division.plan(layer, True, fault.cluster))
        peer = by_reference(layer, layer.dtype)
        assert_all_accurate(host.result(), by_reference(layer, torch.float64), peer)


def test_an_edit_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError, match="does not occur"):
        build_variant("nothing", [("cuda/lstm.cuh", "no such text", "")], [])
