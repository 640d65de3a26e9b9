"""That tests see faults in the kernels of masked convolution for single warps: each changes results or is named."""

import pytest
import torch
from convolution_cases import ConvolutionCase

from cuda_on_host.convolution import Convolutions
from cuda_on_host.convolution_faults import (
    GROUPS,
    LARGE,
    WRONG,
    Fault,
    check_that_a_fault_is_seen,
    check_without_a_fault,
    instead,
    left_out,
    plant,
)  # fmt: skip

STEMS = ["mma_masked_conv2d", "mma_plan", "mma_weight_gradient_bfloat16"]
STEMS += [f"mma_{name}_{dtype}" for name in ("forward", "input_gradient") for dtype in ("bfloat16", "float32")]
BF16, F32 = torch.bfloat16, torch.float32
# Without a pixel that a tap reads in the column before or after.
INNER = ConvolutionCase(8, 8, (3, 1), "B", size=(5, 4), batch=9)
FEW_SOURCES = ConvolutionCase(8, 72, (1, 3), "B", size=(4, 9))
MMA, MMA_GRADIENT, TILES = (f"cuda/conv/mma_{name}.cuh" for name in ("correlation", "weight_gradient", "tiles"))
FAULTS = {
    # In the kernels for single warps: forward pass and input gradient.
    "no wait for a stage of a warp": Fault(
        MMA, *left_out("copies_done<kStages - 2>();"), mma=BF16
    ),
    "a wait for too few copies": Fault(
        MMA, "copies_done<kStages - 2>();", "FAULT ? copies_done<kStages - 1>() : copies_done<kStages - 2>();", mma=BF16
    ),
    "no barrier before a stage of a warp": Fault(
        MMA, *left_out("block_barrier();", "\n      copy_next();"), mma=BF16
    ),
    "no barrier before the tile is stored": Fault(
        MMA, "block_barrier();  // until", "if (!FAULT) block_barrier();  // until", mma=BF16
    ),
    "sums that are stored over those before": Fault(
        MMA, *left_out("warp_barrier();", "\n#pragma unroll\n      for (int j = 0;"), mma=BF16
    ),
    "sums that are read before all are there": Fault(
        MMA, *left_out("warp_barrier();", "\n#pragma unroll\n      for (int k = lane;"), mma=BF16
    ),
    "copies that are not ended by a batch": Fault(
        MMA, *left_out("copies_started();"), WRONG + "|before its copies are done", mma=BF16
    ),
    "a pixel of the row before": Fault(
        TILES, "(static_cast<unsigned>(x + dx) < static_cast<unsigned>(width));",
        "((FAULT && index > width) || static_cast<unsigned>(x + dx) < static_cast<unsigned>(width));", mma=BF16,
    ),
    "a pixel of the image before": Fault(
        TILES, "return (static_cast<unsigned>(y + dy) < static_cast<unsigned>(height)) &",
        "return ((FAULT && y >= 0 && index >= 4) || static_cast<unsigned>(y + dy) < static_cast<unsigned>(height)) &",
        case=INNER, mma=BF16,
    ),
    "tap columns that are not mirrored": Fault(
        "cuda/conv/mma_masked_conv2d.cu", *instead("-sign * taps.before_x", "-taps.before_x"), mma=BF16
    ),
    "rows of taps one too low": Fault(
        MMA, "stage.dy += params.tap_y;", "stage.dy += (FAULT ? 2 : 1) * params.tap_y;", mma=BF16
    ),
    "the weight of the next tap": Fault(MMA, "if (++stage.tap <", "if ((stage.tap += 1 + FAULT) <", mma=BF16),
    "source channels that are left out": Fault(
        MMA, "const int depth = stage.depth + kDepth;", "const int depth = stage.depth + (1 + FAULT) * kDepth;",
        mma=BF16,
    ),
    "source channels after the last": Fault(
        MMA, "const bool exists = (depth < stage.end) &", "const bool exists = (FAULT || depth < stage.end) &",
        case=FEW_SOURCES, nan=True, says=WRONG + "|", mma=BF16,
    ),
    "chunks of depth rows in another order": Fault(
        TILES, "depth_place(row + lane % 16, lane / 16);", "depth_place(row + lane % 16, FAULT ^ lane / 16);", mma=BF16
    ),
    "swapped halves of the right matrices": Fault(
        TILES, "sum[0], left, right.x, right.y", "sum[0], left, FAULT ? right.y : right.x, FAULT ? right.x : right.y",
        mma=BF16,
    ),
    "the right matrices of other channels": Fault(
        TILES, "sum[1], left, right.z, right.w", "sum[1], left, FAULT ? right.x : right.z, FAULT ? right.y : right.w",
        mma=F32,
    ),
    "a depth that is not transposed": Fault(
        TILES, "return {word(0, 0), word(4, 0)", "return {word(FAULT ? 4 : 0, 0), word(FAULT ? 0 : 4, 0)", mma=F32
    ),
    "channels in another order": Fault(
        TILES, "(rows + (place ^ 16 * j) +", "(rows + (place ^ 16 * (j ^ FAULT)) +", mma=BF16
    ),
    "the last channels of a group left out": Fault(
        MMA, "if (at < params.pixels && to < range.end)", "if (at < params.pixels && to < range.end - 8 * FAULT)",
        case=GROUPS, mma=BF16,
    ),
    "the bias of other channels": Fault(
        MMA, "(params.bias)[first_channel + column + k]", "(params.bias)[first_channel + (FAULT ? 0 : column) + k]",
        mma=F32,
    ),
    "a centre that sees no group": Fault(
        MMA, "stage = depth < params.source_channels ? first() : at_centre();",
        "stage = depth < params.source_channels || FAULT ? first() : at_centre();", case=GROUPS, mma=BF16,
    ),
    # In their weight gradient.
    "no wait for pixels that are summed over": Fault(
        MMA_GRADIENT, *left_out("copies_done<kStages - 2>();"), mma=BF16
    ),
    "no barrier before pixels that are summed over": Fault(
        MMA_GRADIENT, *left_out("block_barrier();", "\n      copy_next();"), mma=BF16
    ),
    "rows that are not counted on": Fault(MMA_GRADIENT, *left_out("++pixel.y;"), mma=BF16),
    "the tap above": Fault(
        MMA_GRADIENT, "dy = tap / params.taps.row_length", "dy = (tap + FAULT) / params.taps.row_length", mma=BF16
    ),
    "pixels of another part": Fault(
        MMA_GRADIENT, *instead("int64_t(split + 1) * plan.stages / plan.splits", "int64_t(plan.stages)"),
        case=LARGE, mma=BF16,
    ),
    "slots of a warp over slots": Fault(
        MMA_GRADIENT, *instead("int64_t(blockIdx.x) * params.plan.slot_values()", "0"), case=LARGE, mma=BF16
    ),
    "a bias gradient of one part": Fault(
        MMA_GRADIENT, *instead("split * params.plan.bias_values()", "0"), case=LARGE, mma=BF16
    ),
    "left matrices of other pixels": Fault(
        TILES, "place(lane % 8 + lane / 16 * 8, channel / 8 + lane / 8 % 2)",
        "place(lane % 8 + (FAULT ? lane / 8 % 2 : lane / 16) * 8, channel / 8 + lane / 8 % 2)", mma=BF16,
    ),
    "an addend left out": Fault(MMA_GRADIENT, "i < addends; ++i)", "i < addends - FAULT; ++i)", case=LARGE, mma=BF16),
    "no barrier between the addends of slots": Fault(
        MMA_GRADIENT, "shared[thread] = sum;\n  block_barrier();",
        "shared[thread] = sum;\n  if (!FAULT) block_barrier();", case=LARGE, multiprocessors=100, mma=BF16,
    ),
    "gradients of what no output sees": Fault(
        MMA_GRADIENT, "active && (all ||", "active && (all || FAULT ||", case=GROUPS, mma=BF16
    ),
    "masked taps that single warps leave as they are": Fault(
        MMA_GRADIENT, "if (!exists ||", "if (!exists || (FAULT && !active) ||", mma=BF16
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def faulty() -> Convolutions:
    return plant("faulty_mma_convolutions", FAULTS, STEMS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(faulty: Convolutions, name: str) -> None:
    check_that_a_fault_is_seen(faulty, FAULTS, name)


def test_without_a_fault(faulty: Convolutions) -> None:
    check_without_a_fault(faulty, FAULTS)
