// Tiles in shared memory from which warps load the operands of their matrix instructions (mma.sync), and the pixels of
// images that they are copied from.
//
// Rows are of one pixel or one target channel with neighbouring source channels ("depth rows"), or of one source
// channel, or one pixel that is summed over, with neighbouring channels of the product ("channel rows"). The order of
// the 16-byte chunks of a row depends on the row, so that the 8 rows of a matrix lie in different banks. It is the same
// for rows whose distance is 8, and a chunk whose number differs in one bit is at an offset that differs in one bit. So
// a lane finds where its first operand is once ("place"), and all others from there by a sum and an exclusive or.

#pragma once

#include "cuda/conv/mma_plan.h"
#include "cuda/kit/dtype.cuh"

namespace fused_rnn::cuda {

template <typename T>
constexpr int kChunkValues = 16 / static_cast<int>(sizeof(T));

// The offset of a chunk in depth rows, which have kMmaDepthBytes.
FUSED_RNN_DEVICE int depth_place(int row, int chunk) { return row * kMmaDepthBytes + (chunk ^ row / 2 % 4) * 16; }

// The same in channel rows of kChannels channels. In float32 a lane reads single values, from one of four rows.
template <typename T, int kChannels>
struct ChannelRows {
  static constexpr int kBytes = kChannels * static_cast<int>(sizeof(T)), kChunks = kBytes / 16;
  static constexpr int kRowsAtOnce = kMmaThreads / kChunks;  // whose chunks the threads of a block copy at once
  static FUSED_RNN_DEVICE int place(int row, int chunk) {
    return row * kBytes + (chunk ^ (sizeof(T) == 2 ? row % 8 : row % 4 * 2)) * 16;
  }
};

// The left matrix of 16 pixels or channels, 32 bytes of them deep: from depth rows, or from channel rows of half
// precision, transposed. `row` and `channel` are multiples of 16, `step` counts the 32 bytes, or 16 rows.
struct LeftInDepthRows {
  int place;
  FUSED_RNN_DEVICE explicit LeftInDepthRows(int row) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    place = depth_place(row + lane % 16, lane / 16);
  }
  FUSED_RNN_DEVICE uint4 load(const char* rows, int i, int step) const {
    return load_matrices<false>(rows + (place ^ 32 * step) + 16 * i * kMmaDepthBytes);
  }
};
template <typename T, int kChannels>
struct LeftInChannelRows {
  int place;
  FUSED_RNN_DEVICE explicit LeftInChannelRows(int channel) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    place = ChannelRows<T, kChannels>::place(lane % 8 + lane / 16 * 8, channel / 8 + lane / 8 % 2);
  }
  FUSED_RNN_DEVICE uint4 load(const char* rows, int i, int step) const {
    return load_matrices<true>(rows + (place ^ 32 * i) + 16 * step * ChannelRows<T, kChannels>::kBytes);
  }
};

// The right matrices of the 8 channels number j, which is even, and of the next 8: words x and y are those of the
// first, z and w of the second.
struct RightInDepthRows {
  int place;
  FUSED_RNN_DEVICE explicit RightInDepthRows(int row) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    place = depth_place(row + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }
  FUSED_RNN_DEVICE uint4 load(const char* rows, int j, int step) const {
    return load_matrices<false>(rows + (place ^ 32 * step) + 8 * j * kMmaDepthBytes);
  }
};
template <typename T, int kChannels>
struct RightInChannelRows {
  using Rows = ChannelRows<T, kChannels>;
  int place;
  FUSED_RNN_DEVICE explicit RightInChannelRows(int channel) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (sizeof(T) == 2)
      place = Rows::place(lane % 16, channel / 8 + lane / 16);
    else
      place = Rows::place(lane % 4, channel / 4 + lane / 16) + lane / 4 % 4 * 4;
  }
  FUSED_RNN_DEVICE uint4 load(const char* rows, int j, int step) const {
    if constexpr (sizeof(T) == 2) {
      return load_matrices<true>(rows + (place ^ 16 * j) + 16 * step * Rows::kBytes);
    } else {
      const auto word = [&](int row, int more) {
        return *reinterpret_cast<const uint32_t*>(rows + (place ^ 32 * (j + more)) + (8 * step + row) * Rows::kBytes);
      };
      return {word(0, 0), word(4, 0), word(0, 1), word(4, 1)};
    }
  }
};

// sum[0] and sum[1] += left times each of the right matrices.
template <typename T>
FUSED_RNN_DEVICE void multiply_two(float (*sum)[4], const uint4& left, const uint4& right) {
  MmaTraits<T>::multiply(sum[0], left, right.x, right.y, /*full_precision=*/false);
  MmaTraits<T>::multiply(sum[1], left, right.z, right.w, /*full_precision=*/false);
}

// The place of a pixel in its image, and its number among the pixels of all images.
struct MmaPixel {
  int index, y, x;

  FUSED_RNN_DEVICE static MmaPixel at(int index, int height, int width) {
    const int row = index / width;
    return {index, row % height, index - row * width};
  }
  // Whether the pixel so many rows below and columns to the right is in the image.
  FUSED_RNN_DEVICE bool sees(int dy, int dx, int height, int width) const {
    return (static_cast<unsigned>(y + dy) < static_cast<unsigned>(height)) &
           (static_cast<unsigned>(x + dx) < static_cast<unsigned>(width));
  }
  // The number of the pixel that is `distance` pixels further; something else if there is none.
  FUSED_RNN_DEVICE int64_t further(int distance) const {
    return static_cast<int>(static_cast<unsigned>(index) + static_cast<unsigned>(distance));
  }
};

// The pixels from one to another of the same image, modulo 2^32: images have fewer, taps may reach further.
FUSED_RNN_DEVICE int distance_of(int dy, int dx, int width) {
  return static_cast<int>(static_cast<unsigned>(dy) * static_cast<unsigned>(width) + static_cast<unsigned>(dx));
}

}  // namespace fused_rnn::cuda
