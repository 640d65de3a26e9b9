// The gradients of masked convolution by its weight and bias, by the matrix instructions of single warps:
// grad_weight[out, tap, in] = sum over pixels of grad_output[pixel, out] input[pixel + place of tap, in].
//
// A block has a unit, of one tap and 64 or 128 output and as many input channels, and sums it over some of the pixels,
// 32 of them a stage. It leaves its sums in a slot, and a second kernel adds the slots of a unit in the order of the
// blocks. The blocks of the first tap and the first input channels sum the bias gradient, too, as the product with a
// matrix of ones. Blocks that run at the same time read the same pixels, which then are in the L2 cache.

#pragma once

#include "cuda/conv/mma_tiles.cuh"
#include "cuda/kit/division.h"

namespace fused_rnn::cuda {

struct MmaWeightGradientParams {
  const void* grad_output;                    // [pixels, out_channels]
  const void* input;                          // [pixels, in_channels]
  float* slots;                               // [blocks, channels of a unit, channels of a unit]
  float* bias_slots;                          // [splits, output tiles, channels of a unit]
  void* grad_weight;                          // or null
  void* grad_bias;                            // [out_channels], or null
  int64_t out_stride, in_stride, tap_stride;  // of grad_weight
  int in_channels, out_channels;
  int pixels, height, width;  // of all images, and of one
  int kernel_taps;
  int step_y, step_x;  // how much further the pixel of the next stage is; rows are counted within an image
  Centre centre;
  Taps taps;
  // Of the kernel that adds: how many threads share a sum, and the blocks for each gradient.
  int addends;
  int64_t weight_blocks, bias_blocks;
  MmaWeightGradientPlan plan;
};

template <typename T, int kChannels>
struct MmaWeightGradient {
  static constexpr int kStages = mma_gradient_stages(kChannels);
  static constexpr int kRowsBytes = kMmaGradientPixels * kChannels * 2, kStageBytes = 2 * kRowsBytes;
  using Rows = ChannelRows<T, kChannels>;
  static constexpr int kRows = Rows::kRowsAtOnce;
  static constexpr int kOwnPixels = kMmaGradientPixels / kRows;  // of which a thread copies chunks
  static constexpr int kWarpChannels = kChannels / 2;
  static constexpr int kDown = kWarpChannels / 16, kAcross = kWarpChannels / 8;  // products of a warp
  using Sums = float[kDown][kAcross][4];
  using BiasSums = float[kDown][4];
  using Left = LeftInChannelRows<T, kChannels>;
  using Right = RightInChannelRows<T, kChannels>;

  const MmaWeightGradientParams& params;
  int split, tap, out_tile, in_tile;
  int dy, dx;  // from a pixel to the one that the tap reads for it
  int first_stage, stages;
  int row, place;  // of the thread's copies in a stage
  int out, in;     // the channels that it copies

  FUSED_RNN_DEVICE explicit MmaWeightGradient(const MmaWeightGradientParams& params) : params(params) {
    const MmaWeightGradientPlan& plan = params.plan;
    const int index = static_cast<int>(blockIdx.x);
    split = index / plan.units();
    int unit = index - split * plan.units();
    in_tile = unit % plan.in_tiles;
    unit /= plan.in_tiles;
    out_tile = unit % plan.out_tiles;
    tap = unit / plan.out_tiles;
    dy = tap / params.taps.row_length * params.taps.dilation_y - params.taps.before_y;
    dx = tap % params.taps.row_length * params.taps.dilation_x - params.taps.before_x;
    first_stage = static_cast<int>(int64_t(split) * plan.stages / plan.splits);
    stages = static_cast<int>(int64_t(split + 1) * plan.stages / plan.splits) - first_stage;
    const int chunk = static_cast<int>(threadIdx.x) % Rows::kChunks;
    row = static_cast<int>(threadIdx.x) / Rows::kChunks;
    place = Rows::place(row, chunk);
    out = out_tile * kChannels + chunk * kChunkValues<T>;
    in = in_tile * kChannels + chunk * kChunkValues<T>;
  }

  FUSED_RNN_DEVICE bool sums_bias() const { return params.grad_bias && tap == 0 && in_tile == 0; }

  // Starts the copies of a stage: of the gradients of its pixels, and of what the tap reads for them.
  FUSED_RNN_DEVICE void copy(const MmaPixel (&pixel)[kOwnPixels], char* to) const {
    const T* grads = static_cast<const T*>(params.grad_output) + out;
    const T* input = static_cast<const T*>(params.input) + in;
    const int distance = distance_of(dy, dx, params.width);
#pragma unroll
    for (int i = 0; i < kOwnPixels; ++i) {
      const bool is_pixel = pixel[i].index < params.pixels;
      char* at = to + place + i * kRows * Rows::kBytes;
      copy_chunk<false>(at, grads + pixel[i].further(0) * params.out_channels, is_pixel & (out < params.out_channels));
      copy_chunk<false>(at + kRowsBytes, input + pixel[i].further(distance) * params.in_channels,
                        is_pixel & (in < params.in_channels) & pixel[i].sees(dy, dx, params.height, params.width));
    }
  }

  // Moves on to the pixel of the next stage, without dividing.
  FUSED_RNN_DEVICE void advance(MmaPixel& pixel) const {
    pixel.index += kMmaGradientPixels;
    pixel.x += params.step_x;
    pixel.y += params.step_y;
    if (pixel.x >= params.width) {
      pixel.x -= params.width;
      ++pixel.y;
    }
    if (pixel.y >= params.height) pixel.y -= params.height;
  }

  // Sums the unit over the block's pixels; see MmaCorrelation::sum_up.
  FUSED_RNN_DEVICE void sum_up(Sums& sum, BiasSums& bias_sum, char* ring) const {
    MmaPixel pixel[kOwnPixels];
#pragma unroll
    for (int i = 0; i < kOwnPixels; ++i)
      pixel[i] = MmaPixel::at(first_stage * kMmaGradientPixels + row + kRows * i, params.height, params.width);
    int copied = 0, filled = 0;  // stages, and the buffer of the next one
    const auto copy_next = [&] {
      if (copied < stages) {
        copy(pixel, ring + filled * kStageBytes);
#pragma unroll
        for (int i = 0; i < kOwnPixels; ++i) advance(pixel[i]);
      }
      ++copied;
      filled = filled + 1 == kStages ? 0 : filled + 1;
      copies_started();
    };
#pragma unroll 1
    for (int i = 0; i + 1 < kStages; ++i) copy_next();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const Left left(warp % 2 * kWarpChannels);
    const Right right(warp / 2 * kWarpChannels);
    const bool bias = sums_bias() && warp < 2;
    for (int i = 0, buffer = 0; i < stages; ++i, buffer = buffer + 1 == kStages ? 0 : buffer + 1) {
      copies_done<kStages - 2>();
      block_barrier();
      copy_next();
      multiply(sum, left, right, ring + buffer * kStageBytes);
      if (bias) sum_bias(bias_sum, left, ring + buffer * kStageBytes);
    }
    copies_done<0>();
  }

  FUSED_RNN_DEVICE static void multiply(Sums& sum, const Left& left, const Right& right, const char* stage) {
#pragma unroll
    for (int step = 0; step < kMmaGradientPixels / 16; ++step) {
      uint4 grads[kDown];
#pragma unroll
      for (int i = 0; i < kDown; ++i) grads[i] = left.load(stage, i, step);
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        const uint4 input = right.load(stage + kRowsBytes, j, step);
#pragma unroll
        for (int i = 0; i < kDown; ++i) multiply_two<T>(sum[i] + j, grads[i], input);
      }
    }
  }

  FUSED_RNN_DEVICE static void sum_bias(BiasSums& sum, const Left& left, const char* stage) {
    constexpr uint32_t kOnes = __is_same(T, bfloat16) ? 0x3f803f80 : 0x3c003c00;
#pragma unroll
    for (int step = 0; step < kMmaGradientPixels / 16; ++step)
#pragma unroll
      for (int i = 0; i < kDown; ++i) MmaTraits<T>::multiply(sum[i], left.load(stage, i, step), kOnes, kOnes, false);
  }

  // Leaves the sums in the block's slots.
  FUSED_RNN_DEVICE void store(const Sums& sum, const BiasSums& bias_sum) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int first_out = warp % 2 * kWarpChannels + lane / 4, first_in = warp / 2 * kWarpChannels + lane % 4 * 2;
    float* slot = params.slots + int64_t(blockIdx.x) * params.plan.slot_values();
    float* bias_slot = params.bias_slots + split * params.plan.bias_values() + out_tile * kChannels;
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int out = first_out + 16 * i + 8 * half;
#pragma unroll
        for (int j = 0; j < kAcross; ++j)
          *reinterpret_cast<float2*>(slot + out * kChannels + first_in + 8 * j) = {sum[i][j][2 * half],
                                                                                   sum[i][j][2 * half + 1]};
        if (sums_bias() && warp < 2 && lane % 4 == 0) bias_slot[out] = bias_sum[i][2 * half];
      }
  }
};

template <typename T, int kChannels>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS_AND_BLOCKS(kMmaThreads, kMmaBlocksOnEach)
    mma_sum_weight_gradient(const FUSED_RNN_PARAM MmaWeightGradientParams params) {
  const MmaWeightGradient<T, kChannels> gradient(params);
  float sum[kChannels / 32][kChannels / 16][4] = {}, bias_sum[kChannels / 32][4] = {};
  gradient.sum_up(sum, bias_sum, shared_memory());
  gradient.store(sum, bias_sum);
}

// Adds the slots. A thread has 4 input channels of one tap and output channel, or 4 output channels of the bias
// gradient; `addends` threads share them, and each adds every addends-th slot. Masked taps are set to zero.
constexpr int kMmaAddThreads = 256, kMmaMostAddends = 8;

// Returns the sum of the 4 values at `from` in so many slots, which may be none, in the first of the threads that share
// it. Every thread of the block calls it.
FUSED_RNN_DEVICE float4 add_mma_slots(const float* from, int slots, int64_t slot_values, int addends) {
  const int threads = kMmaAddThreads / addends, thread = static_cast<int>(threadIdx.x);
  auto* shared = reinterpret_cast<float4*>(shared_memory());
  const auto add = [](float4& sum, const float4& part) {
    sum.x += part.x;
    sum.y += part.y;
    sum.z += part.z;
    sum.w += part.w;
  };
  float4 sum = {0, 0, 0, 0};
#pragma unroll 4
  for (int slot = thread / threads; slot < slots; slot += addends)
    add(sum, *reinterpret_cast<const float4*>(from + slot * slot_values));
  if (addends == 1) return sum;
  shared[thread] = sum;
  block_barrier();
  for (int i = 1; thread < threads && i < addends; ++i) add(sum, shared[thread + i * threads]);
  return sum;
}

template <typename T>
FUSED_RNN_DEVICE void add_mma_bias_gradient(const MmaWeightGradientParams& params, int64_t first) {
  const int threads = kMmaAddThreads / params.addends, thread = static_cast<int>(threadIdx.x);
  const int64_t out = (first + thread % threads) * 4;
  const bool exists = out < params.out_channels;
  const float4 sum = add_mma_slots(params.bias_slots + out, exists ? params.plan.splits : 0, params.plan.bias_values(),
                                   params.addends);
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
  if (exists && thread < threads)
    for (int i = 0; i < 4; ++i) static_cast<T*>(params.grad_bias)[out + i] = narrow<T>(values[i]);
}

template <typename T>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kMmaAddThreads)
    mma_add_weight_gradient(const FUSED_RNN_PARAM MmaWeightGradientParams params) {
  const MmaWeightGradientPlan& plan = params.plan;
  const int threads = kMmaAddThreads / params.addends, thread = static_cast<int>(threadIdx.x);
  const int64_t block = blockIdx.x;
  if (block >= params.weight_blocks) return add_mma_bias_gradient<T>(params, (block - params.weight_blocks) * threads);
  const int64_t index = block * threads + thread % threads;
  const int across = params.in_channels / 4;
  const int in = static_cast<int>(index % across) * 4, tap = static_cast<int>(index / across % params.kernel_taps);
  const int64_t out = index / across / params.kernel_taps;
  const bool exists = out < params.out_channels, active = tap < params.taps.count;
  const int out_tile = static_cast<int>(out / plan.channels), in_tile = in / plan.channels;
  const int64_t unit = (int64_t(tap) * plan.out_tiles + out_tile) * plan.in_tiles + in_tile;
  const float* from =
      params.slots + unit * plan.slot_values() + out % plan.channels * plan.channels + in % plan.channels;
  const float4 sum =
      add_mma_slots(from, exists && active ? plan.splits : 0, plan.units() * plan.slot_values(), params.addends);
  if (!exists || thread >= threads) return;
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
  const bool all = params.centre.groups == 1 || tap + 1 < params.taps.count;
  T* to = static_cast<T*>(params.grad_weight) + out * params.out_stride + tap * params.tap_stride;
  for (int i = 0; i < 4; ++i)
    to[(in + i) * params.in_stride] =
        narrow<T>(active && (all || params.centre.sees(static_cast<int>(out), in + i)) ? values[i] : 0);
}

}  // namespace fused_rnn::cuda
