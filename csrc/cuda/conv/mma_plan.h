// How masked convolution is shared out among thread blocks whose warps multiply by themselves (mma.sync): on GPUs that
// do not have the warpgroup instructions of Hopper, or for which no kernels with them were built.

#pragma once

#include <cstdint>

#include "cuda/conv/plan.h"

namespace fused_rnn::cuda {

constexpr int kMmaThreads = 128;        // of a block: two warps by two
constexpr int kMmaBlocksOnEach = 2;     // multiprocessor at once, for which registers and shared memory are sized
constexpr int kMmaPixels = 128;         // of a tile of the forward pass or the input gradient
constexpr int kMmaDepthBytes = 64;      // of source channels that a stage has of each pixel
constexpr int kMmaGradientPixels = 32;  // that a stage of the weight gradient sums over

// Buffers of a ring, whose copies run ahead of the products: as many as 48 KiB have room for.
constexpr int mma_stages(int channels) { return channels == 64 ? 4 : 3; }
constexpr int mma_gradient_stages(int channels) { return channels == 64 ? 6 : 3; }

// The tiles of the forward pass or the input gradient: of kMmaPixels pixels, which follow one another through rows and
// images, and 64 or 128 target channels of one group.
struct MmaCorrelationPlan {
  int channels;
  int64_t pixel_tiles, channel_tiles;

  constexpr int64_t blocks() const { return pixel_tiles * channel_tiles; }
  constexpr int64_t shared_bytes() const {
    return int64_t(mma_stages(channels)) * (kMmaPixels + channels) * kMmaDepthBytes;
  }
};

// The parts of a weight gradient: units of one tap, and as many output as input channels, 64 or 128. The pixels of each
// unit are divided among `splits` blocks.
struct MmaWeightGradientPlan {
  int channels;
  int taps, out_tiles, in_tiles;
  int stages;  // of kMmaGradientPixels pixels, of a unit
  int splits;

  constexpr int units() const { return taps * out_tiles * in_tiles; }
  constexpr int64_t blocks() const { return int64_t(units()) * splits; }
  constexpr int64_t shared_bytes() const {
    return int64_t(mma_gradient_stages(channels)) * kMmaGradientPixels * 2 * channels * 2;
  }
  // Values of a slot, in which a block leaves its part of a unit; and of all scratch memory, with the parts of the bias
  // gradient.
  constexpr int64_t slot_values() const { return int64_t(channels) * channels; }
  constexpr int64_t bias_values() const { return int64_t(out_tiles) * channels; }
  constexpr int64_t scratch_values() const { return blocks() * slot_values() + splits * bias_values(); }
};

// Why these kernels do not serve a layer of values of so many bytes, 2 in half precision and 4 in float32 with tf32;
// null if they do.
const char* why_no_mma(const MaskedConv2dSizes& sizes, const Device& device, int element_bytes);

// The plans with tiles of so many channels, and those that are chosen.
MmaCorrelationPlan plan_mma_correlation_with(const MaskedConv2dSizes& sizes, int64_t target_channels, int channels);
MmaCorrelationPlan plan_mma_correlation(const MaskedConv2dSizes& sizes, int64_t target_channels, const Device& device);
MmaWeightGradientPlan plan_mma_weight_gradient_with(const MaskedConv2dSizes& sizes, const Device& device, int channels);
MmaWeightGradientPlan plan_mma_weight_gradient(const MaskedConv2dSizes& sizes, const Device& device);

}  // namespace fused_rnn::cuda
