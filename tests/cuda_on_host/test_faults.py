"""That the tests of this folder see faults: each of these, planted into the kernels, changes results or is named."""

from dataclasses import dataclass

import pytest
import torch
from comparing import assert_all_accurate

from cuda_on_host.build import Edit, build_variant
from cuda_on_host.host import OnHost
from cuda_on_host.layer import Layer, by_reference, peer_of
from cuda_on_host.plans import plan_of
from cuda_on_host.structs import Kernels

# Fewer kernels to compile.
FEW: Edit = ("cuda/persistent_plan.h", "row_tiles * batch_tiles > 16", "held > 0 || row_tiles * batch_tiles > 2")
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
    "no barrier after the products": Fault(
        "cuda/persistent_walk.cuh", "    block_barrier();\n    return", "    return",
    ),
    "one buffer of partial sums": Fault("cuda/persistent_walk.cuh", "    turn_ ^= 1;\n", ""),
    "no barrier before the last states": Fault(
        "cuda/persistent_forward.cuh",
        "    block_barrier();\n    this->each_state([&](int own, int64_t at) {\n      p_.h_n",
        "    this->each_state([&](int own, int64_t at) {\n      p_.h_n",
    ),
    "no meeting before the first step": Fault(
        "cuda/persistent_forward.cuh", "    cluster_barrier();\n  }\n\n  // The input's", "  }\n\n  // The input's",
        cluster=True, says="waits for what no block will write",
    ),
    "half a barrier": Fault(
        "cuda/persistent_walk.cuh", "    block_barrier();\n    return",
        "    if (threadIdx.x % 2) block_barrier();\n    return", says="waits for",
    ),
    "what was read stays there": Fault(
        "cuda/persistent_product.cuh", "if (b.at[n] && j < b.there)\n", "if (b.at[n] && j < 0)\n",
        cluster=True,
    ),
    "one block ends early": Fault(
        "cuda/persistent_forward.cuh", "while (part.index < p_.steps.time) {",
        "while (part.index < p_.steps.time - 2 * (place_.rank == 1)) {", says="waits for what no block will write",
    ),
    "tail of a sum left out": Fault(
        "cuda/persistent_plan.h", "divide_up(hidden_size * element_bytes, kChunkBytes)",
        "(hidden_size * element_bytes / kChunkBytes)",
    ),
    "swapped gates": Fault("cuda/lstm.cuh", "{sums[0], sums[1], sums[2]", "{sums[1], sums[0], sums[2]"),
    "memory not filled": Fault("cuda/persistent_launch.cuh", "(params.output, bytes,", "(params.output, bytes * 0,"),
    "a value that looks missing": Fault(
        "cuda/number.cuh", "return {words.x == kMissing ? 0x7fffffffu : words.x,", "return {words.x,", nan=True,
        says="waits for what no block will write",
    ),
    "cell of the wrong step": Fault(
        "cuda/persistent_backward.cuh", "load_states(p_.cells + this->in_saved(before, 1))",
        "load_states(p_.cells + this->in_saved(row, 1))", kernel="backward",
    ),
    "gradients of another segment": Fault(
        "cuda/persistent_backward.cuh", "grads[Cell::saved_of(gate)]);", "grads[Cell::saved_of(gate / 2)]);",
        kernel="backward", cluster=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(name: str) -> None:
    fault = FAULTS[name]
    edits = [FEW, (fault.file, fault.old, fault.new)]
    kernels = Kernels(build_variant(name.replace(" ", "_"), edits, [f"lstm_{fault.kernel}_float32"]))
    layer = Layer("LSTM", time=5, batch=20, hidden_size=20, nan=fault.nan)
    with pytest.raises((AssertionError, RuntimeError), match=fault.says):
        run_and_compare(kernels, layer, fault.cluster)


def run_and_compare(kernels: Kernels, layer: Layer, cluster: bool) -> None:
    for seed in range(4):
        kernels.choose_schedule(seed)
        host = OnHost(kernels, layer)
        host.forward(plan_of(layer, False, cluster, units=8, sequences=24))
        host.backward(plan_of(layer, True, cluster, units=8, sequences=24))
        assert_all_accurate(host.result(), by_reference(layer, torch.float64), peer_of(layer))


def test_without_a_fault(kernels: Kernels) -> None:
    for cluster in (False, True):
        run_and_compare(kernels, Layer("LSTM", time=5, batch=20, hidden_size=20), cluster)


def test_a_kernel_without_code_ends(kernels: Kernels) -> None:
    # As on a GPU for which no code for clusters was compiled.
    stems = ["lstm_forward_float32", "lstm_backward_float32"]
    without = Kernels(build_variant("without_clusters", [FEW], stems, "-O1 -DFUSED_RNN_WITHOUT_CLUSTERS"))
    layer = Layer("LSTM", batch=4, hidden_size=8)
    host = OnHost(without, layer)
    with pytest.raises(RuntimeError, match="no code for clusters"):
        host.forward(plan_of(layer, False, True, units=8))
    host.forward(plan_of(layer, False, False, units=8))
    with pytest.raises(RuntimeError, match="no code for clusters"):
        host.backward(plan_of(layer, True, True, units=8))


def test_an_edit_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError, match="does not occur"):
        build_variant("nothing", [("cuda/lstm.cuh", "no such text", "")], [])
