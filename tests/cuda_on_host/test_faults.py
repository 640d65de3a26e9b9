"""That the tests of this folder see faults: each of these, planted into the kernels, changes results or is named."""

from dataclasses import dataclass, replace

import pytest
import torch
from comparing import assert_all_accurate, assert_same_noise
from planting import Edit

from cuda_on_host import stepwise
from cuda_on_host.build import build_variant
from cuda_on_host.host import OnHost
from cuda_on_host.layer import Layer, by_reference, peer_of
from cuda_on_host.plans import plan_of, warpgroup_plan
from cuda_on_host.structs import Kernels

# Fewer kernels to compile.
FEW: Edit = (
    "cuda/persistent/plan.h",
    "row_tiles * batch_tiles > 16",
    "chunks_in_registers > 0 || row_tiles * batch_tiles > 2",
)
WRONG = "error|NaN or Inf"
WARPGROUP = "cuda/persistent/warpgroup_product.cuh"


LSTM = Layer("LSTM", time=5, batch=20, hidden_size=20)
GRU = replace(LSTM, kind="GRU")
RNN = replace(LSTM, kind="RNN")
RELU = replace(LSTM, kind="RNN_RELU")
# Long, for roundings to show.
BFLOAT16 = Layer("GRU", torch.bfloat16, time=40, batch=20, hidden_size=24)
FLOAT16 = replace(BFLOAT16, dtype=torch.float16)
BOTH = replace(LSTM, directions=2)
# Two tiles of sequences for a warpgroup, and more than one batch of chunks.
TILES = Layer("LSTM", torch.bfloat16, time=3, batch=70, hidden_size=296)
LENGTHS = tuple(range(4)) * 5


@dataclass(frozen=True)
class Fault:
    file: str
    old: str
    new: str
    layer: Layer = LSTM
    """A layer that shows it."""
    says: str = WRONG
    """What the failure says."""
    cluster: bool = False
    split: int = 0
    """How many blocks share out the depth of a product, where warpgroups multiply."""
    kernel: str = "forward"
    """Where it is planted: forward, backward, or pointwise for the stepwise path."""

    @property
    def stem(self) -> str:
        """Return the source that has the kernel."""
        if self.kernel == "pointwise":
            return "recurrent"
        cell, dtype = self.layer.kind.partition("_")[0].lower(), str(self.layer.dtype).removeprefix("torch.")
        return f"{'warpgroup_' if self.split else ''}{cell}_{self.kernel}_{dtype}"


FAULTS = {
    "no barrier after the products": Fault(
        "cuda/persistent/walk.cuh", "    meet();\n    return", "    return",
    ),
    "one buffer of partial sums, and nobody waits": Fault(
        "cuda/persistent/walk.cuh", "      turn_ ^= 1;\n    else\n      block_barrier();", "      turn_ = 0;",
    ),
    "no barrier before the last states": Fault(
        "cuda/persistent/forward.cuh",
        "    block_barrier();\n    this->each_state([&](int own, int64_t at) {\n      p_.h_n",
        "    this->each_state([&](int own, int64_t at) {\n      p_.h_n",
    ),
    "no meeting before the first step": Fault(
        "cuda/persistent/handover.cuh",
        "without_sentinel(pair_of(sequence, unit)));\n      }\n      cluster_barrier();",
        "without_sentinel(pair_of(sequence, unit)));\n      }",
        cluster=True, says="waits for what no block will write",
    ),
    "half a barrier": Fault(
        "cuda/persistent/walk.cuh", "    meet();\n    return", "    if (threadIdx.x % 2) meet();\n    return",
        says="waits for",
    ),
    "what was read stays there": Fault(
        "cuda/persistent/handover.cuh", "if (received.at[n] && j < received.chunks)\n",
        "if (received.at[n] && j < 0)\n",
        cluster=True,
    ),
    "one block ends early": Fault(
        "cuda/persistent/forward.cuh", "while (tile.step < p_.steps.time) {",
        "while (tile.step < p_.steps.time - 2 * (coordinates_.rank == 1)) {",
        says="waits for what no block will write",
    ),
    "tail of a sum left out": Fault(
        "cuda/persistent/plan.h", "divide_up(hidden_size * element_bytes, kChunkBytes)",
        "(hidden_size * element_bytes / kChunkBytes)",
    ),
    "swapped gates": Fault("cells/lstm.h", "c = f * c + i * g;", "c = i * c + f * g;"),
    "memory not filled": Fault(
        "cuda/persistent/handover.cuh", "0xff, values * int64_t(sizeof(T))", "0xff, values * 0",
    ),
    "a value that looks missing": Fault(
        "cuda/persistent/handover.cuh", "return {words.x == kSentinel ? 0x7fffffffu : words.x,", "return {words.x,",
        layer=replace(LSTM, nan=True), says="waits for what no block will write",
    ),
    "cell of the wrong step": Fault(
        "cuda/persistent/backward.cuh", "has_before ? p_.cells + this->in_saved(before, 1)",
        "has_before ? p_.cells + this->in_saved(row, 1)", kernel="backward",
    ),
    "gradients of another segment": Fault(
        "cuda/persistent/backward.cuh", "= grads[Cell::hidden_sum(gate)];", "= grads[Cell::hidden_sum(gate / 2)];",
        kernel="backward", cluster=True,
    ),
    # In the GRU.
    "a recurrent sum in the wrong place": Fault("cells/gru.h", "gate == 2 ? 3 : gate", "gate == 2 ? 2 : gate", GRU),
    "swapped biases": Fault(
        "cuda/persistent/forward.cuh", "s >= Cell::kGates ? at(hh, gate) : gate < 0 ? at(ih, s)",
        "s >= Cell::kGates ? at(ih, gate) : gate < 0 ? at(hh, s)", GRU,
    ),
    "hidden value of the wrong step": Fault(
        "cuda/persistent/backward.cuh", "p_.output + this->in_output(before)", "p_.output + this->in_output(row)", GRU,
        kernel="backward",
    ),
    "nothing past the weights": Fault(
        "cells/gru.h", "grad_h = grad_h * z;", "grad_h = grad_h * V(0);", GRU,
        kernel="backward",
    ),
    # In the RNN.
    "the other nonlinearity": Fault("cells/rnn.h", "Math::relu(values[0]);", "Math::tanh(values[0]);", RELU),
    "ReLU's gradient where it is zero": Fault(
        "cuda/kit/activation.cuh", "return y <= V(0) ? V(0) : grad;", "return y < V(0) ? V(0) : grad;",
        RELU, kernel="backward",
    ),
    "ReLU that loses NaN": Fault(
        "cuda/kit/activation.cuh", "return x <= V(0) ? V(0) : x;", "return x > V(0) ? x : V(0);",
        replace(RELU, nan=True),
    ),
    "tanh's gradient of the sum": Fault(
        "cells/rnn.h", "(V(1) - values[0] * values[0])", "(V(1) - values[0])", RNN, kernel="backward",
    ),
    "an RNN's bias left out": Fault(
        "cuda/persistent/forward.cuh", "at(ih, s) + at(hh, gate)", "at(ih, s)", RNN, cluster=True,
    ),
    "ReLU's gradient times its value": Fault(
        "cells/rnn.h", "Math::relu_backward(values[0], grads[0]);", "values[0] * grads[0];", RELU, kernel="pointwise",
    ),
    # In half precision: some are but a rounding too many.
    "swapped words of a sum": Fault(
        "cuda/kit/dtype.cuh", "mma_bfloat16(sum, a, b0, b1);", "mma_bfloat16(sum, a, b1, b0);", BFLOAT16,
    ),
    "a value in half precision that looks missing": Fault(
        "cuda/persistent/handover.cuh", "return words == kSentinel ? 0x7fff7fffu : words;", "return words;",
        replace(BFLOAT16, nan=True),
        cluster=True, says="waits for what no block will write",
    ),
    "a state rounded at every step": Fault(
        "cuda/persistent/forward.cuh", "    store_states(hidden_ + own, hidden);",
        "    widen_pair<T>(words, hidden);\n    store_states(hidden_ + own, hidden);", FLOAT16,
    ),
    "a cell rounded at every step": Fault(
        "cuda/persistent/forward.cuh", "store_states(cell_ + own, cell);",
        "widen_pair<T>(narrow_pair<T>(cell), cell), store_states(cell_ + own, cell);", replace(BFLOAT16, kind="LSTM"),
    ),
    "rounded towards zero": Fault(
        "cuda/kit/dtype.cuh", "return __float2bfloat16(value);", "return __float2bfloat16_rz(value);", BFLOAT16,
    ),
    "gates that are rounded before they are used": Fault(
        "cuda/persistent/forward.cuh", "        sums[u][gate] += input[u];\n",
        "        sums[u][gate] = widen(narrow<T>(sums[u][gate] + input[u]));\n", BFLOAT16,
    ),
    "a carried gradient rounded at every step": Fault(
        "cuda/persistent/backward.cuh", "hidden_ + own) = {carried[0][0], carried[0][1]};",
        "hidden_ + own) = {widen(narrow<T>(carried[0][0])), widen(narrow<T>(carried[0][1]))};",
        BFLOAT16, kernel="backward",
    ),
    # In the pointwise kernels.
    "steps past the end": Fault(
        "cuda/stepwise/pointwise.cuh", "if (p.steps.runs(p.t, sequence)) {\n    T* gates",
        "if (p.t >= 0) {\n    T* gates",
        replace(LSTM, lengths=LENGTHS), kernel="pointwise",
    ),
    "a bias left out": Fault(
        "cuda/stepwise/pointwise.cuh", "(p.bias_hh ? ", "(p.bias_hh && gate < 2 ? ", FLOAT16, kernel="pointwise",
    ),
    "the other direction's rows": Fault(
        "cuda/stepwise/pointwise.cuh", "(row_before * p.directions + p.direction)", "(row_before * p.directions)",
        replace(GRU, directions=2), kernel="pointwise",
    ),
    "a cell before its time": Fault(
        "cuda/stepwise/pointwise.cuh", "p.steps.row(p.before, sequence)", "p.steps.row(p.t, sequence)",
        LSTM, kernel="pointwise",
    ),
    "a cell's gradient lost": Fault(
        "cuda/stepwise/pointwise.cuh", "p.grad_cell[state] = grads[1];", "", kernel="pointwise",
    ),
    "a stepwise state rounded at every step": Fault(
        "cuda/stepwise/pointwise.cuh", "!kHasCellState && p.cell ? carried", "false ? carried",
        FLOAT16, kernel="pointwise",
    ),
    # Where warpgroups multiply.
    "weights in another order": Fault(
        WARPGROUP, "chunk % 2 * 4 + w)) + vector", "chunk % 2 * 4 + (w ^ 1))) + vector", TILES, split=2,
    ),
    "weights of another chunk": Fault(
        WARPGROUP, "chunk % chunks * Traits::kSplit", "chunk % chunks", TILES, split=2,
    ),
    "weights that nobody may see": Fault(
        "cuda/persistent/walk.cuh", "      shared_written();\n", "", TILES, split=2, says="shared_written",
    ),
    "a product that is not waited for": Fault(
        WARPGROUP, "        matrices_done<0>();\n", "", TILES, split=2,
        says="error|NaN or Inf|matrices_done|matrices_begin|products are done",
    ),
    "a product without its beginning": Fault(
        WARPGROUP, "        matrices_begin();\n", "", TILES, split=2, says="matrices_begin was not called",
    ),
    "values of the first chunks again": Fault(
        WARPGROUP, "      first += kChunks;\n", "", TILES, split=2, says="error|waits for",
    ),
    "sums for another block": Fault(
        WARPGROUP, "const int owner = j * 8 / Weights::kOwnRows;",
        "const int owner = Traits::kSplit - 1 - j * 8 / Weights::kOwnRows;", TILES, split=2,
    ),
    "blocks of a cluster that do not meet": Fault(
        "cuda/persistent/walk.cuh", "if constexpr (Traits::kSplit > 1)\n      cluster_barrier();",
        "if constexpr (Traits::kSplit > 8)\n      cluster_barrier();", TILES, split=2,
        says="error|NaN or Inf|ended|waits for",
    ),
    "the second sequences of a thread left out": Fault(
        "cuda/persistent/walk.cuh", "return offset_ + pair * (kSequences / kPairs);",
        "return offset_ + pair / kPairs;", TILES, split=2, says="error|NaN or Inf|waits for",
    ),
    "no cluster for a warpgroup": Fault(
        "cuda/persistent/launch.cuh", "plan.split > 1 ? plan.split : 1;", "1;", TILES, split=2,
        says="the cluster has no such block",
    ),
    "a part of the depth left out backward": Fault(
        "cuda/persistent/walk.cuh", "part < Traits::kParts; ++part", "part < (Traits::kParts + 1) / 2; ++part", TILES,
        split=2, kernel="backward",
    ),
    # In how many blocks are launched, and how.
    "the last threads left out": Fault(
        "cuda/stepwise/pointwise.cuh", "(count + kPointwiseThreads - 1) / kPointwiseThreads",
        "count / kPointwiseThreads",
        kernel="pointwise",
    ),
    "one direction left out": Fault(
        "cuda/persistent/launch.cuh", "plan.groups * plan.directions", "plan.groups", BOTH,
    ),
    "one group left out": Fault(
        "cuda/persistent/launch.cuh", "int64_t(plan.blocks) * plan.groups", "int64_t(plan.blocks)",
        replace(LSTM, batch=30),
    ),
    "blocks one after another": Fault(
        "cuda/persistent/launch.cuh", "!plan.cluster && plan.blocks > 1", "false",
        says="waits for what no block will write",
    ),
    "no cluster": Fault(
        "cuda/persistent/launch.cuh", "= plan.cluster ? plan.blocks : ", "= ", cluster=True,
        says="the cluster has no such block",
    ),
    "half of the memory filled": Fault(
        "cuda/persistent/handover.cuh", "params.steps.rows * params.directions * row_values",
        "params.steps.rows * row_values", BOTH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(name: str) -> None:
    fault = FAULTS[name]
    edits = [FEW, (fault.file, fault.old, fault.new)]
    kernels = Kernels(build_variant(name.replace(" ", "_").replace("'", ""), edits, [fault.stem]))
    with pytest.raises((AssertionError, RuntimeError), match=fault.says):
        run_and_compare(kernels, fault.layer, fault.cluster, fault.split, fault.kernel == "pointwise")


def run_and_compare(kernels: Kernels, layer: Layer, cluster: bool, split: int, pointwise: bool) -> None:
    for seed in range(4):
        kernels.choose_schedule(seed)
        host = OnHost(kernels, layer)
        if pointwise:
            stepwise.forward(host)
            stepwise.backward(host)
        elif split:
            host.forward(warpgroup_plan(layer, False, split, sequences=128))
            host.backward(warpgroup_plan(layer, True, split, sequences=128))
        else:
            host.forward(plan_of(layer, False, cluster, units=8, sequences=24))
            host.backward(plan_of(layer, True, cluster, units=8, sequences=24))
        exact = by_reference(layer, torch.float64)
        assert_all_accurate(host.result(), exact, peer_of(layer))
        if layer.is_half and not layer.nan:
            assert_same_noise(host.result(), exact, peer_of(layer))


def test_without_a_fault(kernels: Kernels) -> None:
    for case in {(f.layer, f.cluster, f.split, f.kernel == "pointwise") for f in FAULTS.values()}:
        run_and_compare(kernels, *case)


def test_a_kernel_without_code_ends(kernels: Kernels) -> None:
    # As on a GPU for which no code for clusters was compiled.
    stems = ["lstm_forward_float32", "lstm_backward_float32"]
    without = Kernels(build_variant("without_clusters", [FEW], stems, "-O1 -DFUSED_RNN_WITHOUT_CLUSTERS"))
    layer = Layer("LSTM", batch=4, hidden_size=8)
    host = OnHost(without, layer)
    with pytest.raises(RuntimeError, match="no code for this GPU"):
        host.forward(plan_of(layer, False, True, units=8))
    host.forward(plan_of(layer, False, False, units=8))
    with pytest.raises(RuntimeError, match="no code for this GPU"):
        host.backward(plan_of(layer, True, True, units=8))


@pytest.mark.parametrize("cluster", [False, True], ids=["grid", "cluster"])
def test_a_kernel_gives_up_when_a_value_does_not_come(cluster: bool) -> None:
    """The kernel's own limit of time: here nothing else ends it, and a clock runs ten seconds at each look."""
    layer = Layer("LSTM", torch.bfloat16, batch=4, hidden_size=24)
    missing = {
        False: ("{ store_fresh(to, message.words); }", "{ if (blockIdx.x > 0) store_fresh(to, message.words); }"),
        True: ("for (int rank = 0; rank < plan_.blocks;", "for (int rank = 1; rank < plan_.blocks;"),
    }
    edits = [
        FEW,
        ("cuda/persistent/handover.cuh", *missing[cluster]),
        ("cuda/persistent/handover.cuh", "kLooksPerClock = 1024", "kLooksPerClock = 4"),
    ]
    name = f"a_store_left_out_{'cluster' if cluster else 'grid'}"
    stems = ["fibers", "lstm_forward_bfloat16"]
    kernels = Kernels(build_variant(name, edits, stems, "-O1 -DFUSED_RNN_KERNELS_GIVE_UP"))
    with pytest.raises(RuntimeError, match="has waited 30 seconds for a value of another one"):
        OnHost(kernels, layer).forward(plan_of(layer, False, cluster, units=8))


def test_an_edit_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError, match="does not occur"):
        build_variant("nothing", [("cells/lstm.h", "no such text", "")], [])
