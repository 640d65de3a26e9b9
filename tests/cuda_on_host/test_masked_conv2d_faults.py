"""That tests of masked convolution see faults: each of these, planted into the kernels, changes results or is named.

All are planted into one copy of the kernels, and switched on one at a time.
"""

from dataclasses import dataclass

import pytest
import torch
from comparing import assert_all_accurate
from convolution_cases import ConvolutionCase, as_made
from nan_in_images import check_nan_in_the_future
from planting import Edit

from cuda_on_host.build import build_variant
from cuda_on_host.convolution import Convolutions, OnHost, Tiles

# Fewer kernels to compile.
FEW: Edit = (
    "cuda/conv/plan.h",
    "return channel_groups == 1 || (channel_groups == 2 && rows >= 16);",
    "return channel_groups == 2 && rows == 16;",
)
STEMS = [
    "first_layer_bfloat16",
    "forward_bfloat16",
    "input_gradient_bfloat16",
    "weight_gradient_bfloat16",
    "masked_conv2d",
    "plan",
    "mma_forward_bfloat16",
    "mma_forward_float32",
    "mma_input_gradient_bfloat16",
    "mma_input_gradient_float32",
    "mma_weight_gradient_bfloat16",
    "mma_masked_conv2d",
    "mma_plan",
]
# What a missing wait leads to depends on the schedule.
WRONG = (
    "error|NaN or Inf|waits for threads that do not come|more threads arrive at a barrier|more bytes were copied|"
    "ends before|sums were written before"
)

BF16, F32 = torch.bfloat16, torch.float32
FEW_CHANNELS = 4  # for the kernels of first layers, in the cases below
CASE = ConvolutionCase(72, 136, (3, 3), "B", size=(11, 13))
DILATED = ConvolutionCase(8, 16, (3, 3), "B", size=(11, 13), dilation=(1, 2))
GROUPS = ConvolutionCase(72, 144, (3, 3), "A", 3, size=(5, 9))
FIRST_LAYER = ConvolutionCase(2, 72, (5, 5), "B", size=(29, 13))
FIRST_GROUPS = ConvolutionCase(3, 24, (3, 3), "A", 3, size=(4, 9))
# Without a pixel that a tap reads in the row before or after.
INNER = ConvolutionCase(8, 8, (3, 1), "B", size=(5, 4), batch=9)
FEW_SOURCES = ConvolutionCase(8, 72, (1, 3), "B", size=(4, 9))
# Many parts of one sum.
LARGE = ConvolutionCase(8, 8, (1, 1), "B", size=(40, 40), batch=3)


@dataclass(frozen=True)
class Fault:
    file: str
    old: str
    """A text that occurs once."""
    new: str
    """What replaces it, where FAULT is whether the fault is on."""
    says: str = WRONG
    """What the failure says."""
    case: ConvolutionCase = CASE
    multiprocessors: int = 2
    nan: bool = False
    """Whether only NaN in what is not seen shows it, by an assertion without a message."""
    mma: torch.dtype | None = None
    """The dtype of the kernels for single warps, if it is in them; otherwise it is in those for Hopper."""
    channels: int = 2
    """Of their tiles, in units of 64."""


def left_out(statement: str, before: str = "") -> tuple[str, str]:
    """Return the edit that leaves out a statement; of several, that before some other text."""
    return statement + before, f"if (!FAULT) {statement}{before}"


def instead(old: str, new: str) -> tuple[str, str]:
    return old, f"(FAULT ? {new} : {old})"


CORRELATION, GRADIENT = "cuda/conv/correlation.cuh", "cuda/conv/weight_gradient.cuh"
MMA, MMA_GRADIENT, TILES = (f"cuda/conv/mma_{name}.cuh" for name in ("correlation", "weight_gradient", "tiles"))
FIRST, PIXELS, HOPPER = "cuda/conv/first_layer.cuh", "cuda/conv/pixels.cuh", "cuda/kit/hopper.cuh"
FAULTS = {
    # In the copies of pixels and weights, and in who waits for them.
    "no wait for the last kernel": Fault(
        CORRELATION, *left_out("wait_for_last_kernel();"), "wait_for_last_kernel was not called"
    ),
    "no wait for the pixels": Fault(CORRELATION, *left_out("barrier_wait(source_full + boxes.stage, boxes.parity);")),
    "no wait for the weights": Fault(
        CORRELATION, *left_out("barrier_wait(weight_full + weights.stage, weights.parity);")
    ),
    "pixels over pixels": Fault(
        CORRELATION, *left_out("barrier_wait(source_empty + boxes.stage, boxes.parity ^ 1);")
    ),
    "weights over weights": Fault(
        CORRELATION, *left_out("barrier_wait(weight_empty + weights.stage, weights.parity ^ 1);")
    ),
    "a parity that stays": Fault(PIXELS, *left_out("parity ^= 1;")),
    "bytes of one row of pixels": Fault(
        CORRELATION, *instead("params.pitch * params.box_rows * kRowBytes", "params.pitch * kRowBytes"),
        "more bytes were copied",
    ),
    "bytes of one warpgroup": Fault(
        CORRELATION, "barrier_arrive_and_expect(full, kGroups *",
        "barrier_arrive_and_expect(full, (FAULT ? 1 : kGroups) *", "more bytes were copied",
    ),
    "bytes of too many pixels": Fault(
        CORRELATION, "boxes.stage, kPixels * kRowBytes);", "boxes.stage, (kPixels + FAULT) * kRowBytes);",
        "at a barrier_wait for 0 more threads and 128 bytes", GROUPS,
    ),
    "buffers that one warp frees": Fault(
        CORRELATION, "barrier_prepare(source_empty + i, kConsumers / 32);",
        "barrier_prepare(source_empty + i, FAULT ? 1 : kConsumers / 32);",
    ),
    "shared memory that is not aligned": Fault(
        HOPPER, "return memory + (kAlignment -", "return FAULT ? memory : memory + (kAlignment -",
        "must begin at a multiple of 128|NaN or Inf|error",
    ),
    # In the products.
    "no beginning": Fault(CORRELATION, *left_out("matrices_begin();"), "matrices_begin was not called"),
    "buffers that are free too early": Fault(CORRELATION, *left_out("matrices_done<1>();")),
    "no wait for the sums": Fault(CORRELATION, *left_out("matrices_done<0>();\n        release();")),
    "sums of the tile before": Fault(CORRELATION, "bool add = false;", "bool add = FAULT;"),
    "rows of another distance": Fault(
        CORRELATION, "right + part * 32, pitch,", "right + part * 32, FAULT ? kTileWidth * kRowBytes : pitch,"
    ),
    "weights of the other warpgroup": Fault(
        CORRELATION, "weights.stage * kGroups + group)", "weights.stage * kGroups + (FAULT ? 0 : group))"
    ),
    "taps that are not mirrored": Fault(
        "cuda/masked_conv2d.cu", "params.first_row = gradient ?", "params.first_row = gradient && !FAULT ?",
        WRONG + "|does not reach so far",
    ),
    # In the stores.
    "chunks in the wrong order": Fault(HOPPER, *instead("(chunk ^ row % 8)", "chunk")),
    "stores over stores": Fault(
        CORRELATION, *left_out("if (stores) boxes_read<CorrelationMemory::kOutBuffers - 1>();")
    ),
    "an end before stores are read": Fault(
        CORRELATION, *left_out("if (threadIdx.x % 128 == 0) boxes_read<0>();"), "ends before its boxes have been read"
    ),
    "a batch that is not ended": Fault(CORRELATION, *left_out("boxes_started();"), "ends before its boxes"),
    "stores that copies do not see": Fault(PIXELS, *left_out("shared_written();"), "did not call shared_written"),
    "no barrier before the copy": Fault(
        CORRELATION, *left_out("group_barrier(1 + group, 128);", "\n      if (stores) {"),
        WRONG + "|did not call shared_written",
    ),
    "a barrier of the whole block": Fault(
        CORRELATION, "group_barrier(1 + group, 128);\n      epilogue",
        "group_barrier(1 + group, FAULT ? 256 : 128);\n      epilogue", "waits for threads|another barrier",
    ),
    "the bias of another channel": Fault(
        PIXELS, *instead("16 * (thread / 32) + 8 * half + thread % 32 / 4", "16 * (thread / 32) + thread % 32 / 4")
    ),
    # In tails and groups of channels.
    "columns left out": Fault(
        "cuda/masked_conv2d.cu", "params.columns = static_cast<int>(divide_up(sizes.width, kTileWidth));",
        "params.columns = static_cast<int>(FAULT ? sizes.width / kTileWidth : divide_up(sizes.width, kTileWidth));",
    ),
    "channels left out": Fault(
        "cuda/conv/plan.cu", "channel_blocks += divide_up(of.end - of.begin, channel_groups * kChannels);",
        "channel_blocks += FAULT ? 1 : divide_up(of.end - of.begin, channel_groups * kChannels);",
    ),
    "a dense weight": Fault(
        "cuda/masked_conv2d.cu", *instead("weight.tap_stride * kBytes", "sizes.in_channels * kBytes")
    ),
    "channels of the next group": Fault(
        "cuda/masked_conv2d.cu", "arrays.target_channels, own.end,",
        "arrays.target_channels, FAULT ? arrays.target_channels : own.end,", case=GROUPS,
    ),
    "a centre that sees its own group": Fault(
        "cuda/conv/plan.cu", "return {0, sizes.own_group ? own.end : own.begin};",
        "return {0, sizes.own_group || FAULT ? own.end : own.begin};", case=GROUPS,
    ),
    "the same weight of the centre for all groups": Fault(
        CORRELATION, "load_weight(range.weight,", "load_weight(FAULT ? params.weight : range.weight,", case=GROUPS,
    ),
    "the same pixels at the centre for all groups": Fault(
        CORRELATION, "load_box(box, range.source,", "load_box(box, FAULT ? params.source : range.source,", case=GROUPS,
    ),
    # In the weight gradient.
    "no wait for a stage": Fault(
        GRADIENT, *left_out("barrier_wait(full + at.stage, at.parity);", "\n      const")
    ),
    "no wait for a stage by those who sum the bias": Fault(
        GRADIENT, *left_out("barrier_wait(full + at.stage, at.parity);", "\n      if (wait")
    ),
    "stages that are free before the bias is summed": Fault(GRADIENT, *left_out("warp_barrier();")),
    "two units with one turn": Fault(GRADIENT, "wait = part.turns - 1;", "wait = part.turns - 1 - FAULT;"),
    "stages over stages": Fault(GRADIENT, *left_out("barrier_wait(empty + at.stage, at.parity ^ 1);")),
    "bytes of fewer rows": Fault(
        GRADIENT, "params.pitch) * params.plan.rows * kRowBytes",
        "params.pitch) * (params.plan.rows - FAULT) * kRowBytes", "more bytes were copied",
    ),
    "stages that are free too early": Fault(GRADIENT, *left_out("matrices_done<1>();")),
    "no wait for the last sums": Fault(GRADIENT, *left_out("matrices_done<0>();\n    if (arrives && read)")),
    "tiles counted twice": Fault(GRADIENT, *instead("within - unit * splits", "0"), case=LARGE),
    "slots over slots": Fault(GRADIENT, *instead("blockIdx.x * params.plan.slot_values()", "0"), case=LARGE),
    "the last slot left out": Fault(GRADIENT, "slot < slots;", "slot < slots - FAULT;", case=LARGE),
    "no barrier between addends": Fault(
        GRADIENT, *left_out("block_barrier();", "\n#pragma unroll\n  for (int row = 0; row < kRows; ++row)\n    for"),
        case=LARGE, multiprocessors=100,
    ),
    "neighbours in place of dilated taps": Fault(
        GRADIENT, *instead("params.taps.dilation_x * kRowBytes)", "kRowBytes"), case=DILATED,
    ),
    "pixels of the bias left out": Fault(GRADIENT, "i < kDown;", "i < kDown - FAULT;"),
    "no barrier between pixels of the bias": Fault(
        GRADIENT, *left_out("group_barrier(1, kBiasThreads);", "\n      if")
    ),
    "masked taps that stay as they are": Fault(
        GRADIENT, "tap < params.kernel_taps;", "!FAULT && tap < params.kernel_taps;"
    ),
    "gradients of masked entries": Fault(GRADIENT, "narrow<T>(all ||", "narrow<T>(all || FAULT ||", case=GROUPS),
    "more registers than there are": Fault(
        GRADIENT, "more_registers<224>();", "FAULT ? more_registers<240>() : more_registers<224>();",
        "are at a more_registers",
    ),
    # In the kernels of first layers.
    "a matrix that instructions do not see": Fault(
        FIRST, *left_out("shared_written();", "\n        block_barrier();"),
        "did not call shared_written", FIRST_LAYER,
    ),
    "a matrix that instructions of the gradient do not see": Fault(
        FIRST, *left_out("shared_written();", "\n      block_barrier();"),
        "did not call shared_written", FIRST_LAYER,
    ),
    "no barrier after gathering": Fault(
        FIRST, *left_out("block_barrier();", "\n        for (int block"),
        WRONG + "|did not call shared_written", FIRST_LAYER,
    ),
    "gathering before products are done": Fault(
        FIRST, *left_out("block_barrier();", "\n      at.advance"),
        WRONG + "|did not call shared_written", FIRST_LAYER, multiprocessors=1,
    ),
    "no wait for gradients of the output": Fault(
        FIRST, *left_out("barrier_wait(full + at.stage, at.parity);"), case=FIRST_LAYER
    ),
    "a pixel of the next row": Fault(
        FIRST, "x >= 0 && x < params.width)", "x >= 0 && (x < params.width || FAULT))", case=FIRST_LAYER
    ),
    "a row above the image": Fault(
        FIRST, "of[i].row >= pixel.first_row ?", "of[i].row >= (FAULT ? 0 : pixel.first_row) ?", case=FIRST_LAYER
    ),
    "no barrier after copying lines": Fault(
        FIRST, *left_out("block_barrier();", "\n    // A warp has 8 columns"),
        case=FIRST_LAYER,
    ),
    "no ones for the bias": Fault(
        FIRST, "if (i == index) values[i]", "if (i == index && !FAULT) values[i]", case=FIRST_LAYER
    ),
    "two warpgroups in one slot": Fault(
        FIRST, "int64_t(blockIdx.x) * 2 + group)", "int64_t(blockIdx.x) * 2 + (FAULT ? 0 : group))", case=FIRST_LAYER
    ),
    "the last slot of a first layer left out": Fault(
        FIRST, "slot < 2 * params.plan.blocks;", "slot < 2 * params.plan.blocks - FAULT;", case=FIRST_LAYER
    ),
    "no barrier between addends of a first layer": Fault(
        FIRST, "shared[thread] = sum;\n  block_barrier();", "shared[thread] = sum;\n  if (!FAULT) block_barrier();",
        case=FIRST_LAYER,
    ),
    "gradients of masked entries of a first layer": Fault(
        FIRST, "narrow<T>(tap < params.taps.count ||", "narrow<T>(FAULT || tap < params.taps.count ||",
        case=FIRST_GROUPS,
    ),
    "a centre of all groups": Fault(
        FIRST, "out < range.end && column < range.columns)", "out < range.end && (column < range.columns || FAULT))",
        case=FIRST_GROUPS,
    ),
    "columns of later groups": Fault(
        FIRST, *left_out("if (range.columns < columns) clear(range.columns, columns);"), "^$", FIRST_GROUPS,
        nan=True,
    ),
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
        MMA, "static_cast<const T*>(params.bias) + first_channel + column)",
        "static_cast<const T*>(params.bias) + first_channel + (FAULT ? 0 : column))", mma=F32,
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
    edits = [FEW]
    for number, fault in enumerate(FAULTS.values()):
        edits.append((fault.file, fault.old, fault.new.replace("FAULT", f"host::has_fault({number})")))
    return Convolutions(build_variant("faulty_convolutions", edits, STEMS))


def run_and_compare(kernels: Convolutions, fault: Fault, schedules: int) -> None:
    case, dtype = fault.case, fault.mma or torch.bfloat16
    host = OnHost(
        kernels, case, Tiles(16, fault.channels), Tiles(4, fault.channels), fault.multiprocessors, gap=8,
        first_layer=case.in_channels < FEW_CHANNELS, mma=fault.mma is not None,
    )  # fmt: skip
    for seed in range(schedules):
        kernels.choose_schedule(seed)
        if fault.nan:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ConvolutionCase, "ours", lambda _, *tensors: host(*tensors))
                check_nan_in_the_future(case, dtype, as_made, "cpu")
        else:
            results = [
                case.result(host, dtype),
                case.result(case.oracle, torch.float64),
                case.result(case.oracle, dtype),
            ]
            for result in results:  # leaving out what the kernels do not compute
                if host.first_layer:
                    del result["grad input"]
                if dtype == torch.float32:
                    del result["grad weight"], result["grad bias"]
            assert_all_accurate(*results)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(faulty: Convolutions, name: str) -> None:
    fault = FAULTS[name]
    faulty.choose_fault([*FAULTS].index(name))
    with pytest.raises((AssertionError, RuntimeError), match=fault.says):
        run_and_compare(faulty, fault, schedules=4)


def test_without_a_fault(faulty: Convolutions) -> None:
    faulty.choose_fault(-1)
    runs = {(f.case, f.multiprocessors, f.nan, f.mma, f.channels): f for f in FAULTS.values()}
    for fault in runs.values():
        run_and_compare(faulty, fault, schedules=2)
