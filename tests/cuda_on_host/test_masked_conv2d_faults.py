"""That tests of masked convolution see faults: each of these, planted into the kernels, changes results or is named."""

import pytest
from convolution_cases import ConvolutionCase
from planting import Edit

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
]

DILATED = ConvolutionCase(8, 16, (3, 3), "B", size=(11, 13), dilation=(1, 2))
FIRST_LAYER = ConvolutionCase(2, 72, (5, 5), "B", size=(29, 13))
FIRST_GROUPS = ConvolutionCase(3, 24, (3, 3), "A", 3, size=(4, 9))

CORRELATION, GRADIENT = "cuda/conv/correlation.cuh", "cuda/conv/weight_gradient.cuh"
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
}  # fmt: skip


@pytest.fixture(scope="module")
def faulty() -> Convolutions:
    return plant("faulty_convolutions", FAULTS, STEMS, [FEW])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(faulty: Convolutions, name: str) -> None:
    check_that_a_fault_is_seen(faulty, FAULTS, name)


def test_without_a_fault(faulty: Convolutions) -> None:
    check_without_a_fault(faulty, FAULTS)
