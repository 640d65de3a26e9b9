// Tiles in shared memory from which warps load the operands of their matrix instructions (mma.sync), and the pixels of
// images that they are copied from.
//
// Rows are of one pixel or one target channel with neighbouring source channels ("depth rows"), or of one source
// channel, or one pixel that is summed over, with neighbouring channels of the product ("channel rows"). The order of
// the 16-byte chunks of a row depends on the row, so that the 8 rows of a matrix lie in different banks.

#pragma once

#include "cuda/conv/mma_plan.h"
#include "cuda/kit/dtype.cuh"

namespace fused_rnn::cuda {

template <typename T>
constexpr int kChunkValues = 16 / static_cast<int>(sizeof(T));

// A chunk of a depth row, which has kMmaDepthBytes.
FUSED_RNN_DEVICE char* depth_chunk(char* rows, int row, int chunk) {
  return rows + row * kMmaDepthBytes + (chunk ^ row / 2 % 4) * 16;
}

// A chunk of a channel row of kChannels channels. In float32 four lanes read neighbouring rows, not eight.
template <typename T, int kChannels>
FUSED_RNN_DEVICE char* channel_chunk(char* rows, int row, int chunk) {
  const int order = sizeof(T) == 2 ? row % 8 : row % 4 * 2;
  return rows + row * (kChannels * static_cast<int>(sizeof(T))) + (chunk ^ order) * 16;
}

// The left matrix of 16 pixels or channels, from depth rows or, transposed, from channel rows; 32 bytes deep.
FUSED_RNN_DEVICE uint4 load_left(char* rows, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return load_matrices<false>(depth_chunk(rows, row + lane % 16, 2 * step + lane / 16));
}
template <typename T, int kChannels>
FUSED_RNN_DEVICE uint4 load_left_transposed(char* rows, int channel, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = 16 * step + lane % 8 + lane / 16 * 8;
  return load_matrices<true>(channel_chunk<T, kChannels>(rows, row, channel / 8 + lane / 8 % 2));
}

// The right matrices of 8 channels and of the next 8: words x and y are those of the first, z and w of the second.
FUSED_RNN_DEVICE uint4 load_right(char* rows, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return load_matrices<false>(depth_chunk(rows, row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
}
template <typename T, int kChannels>
FUSED_RNN_DEVICE uint4 load_right_transposed(char* rows, int channel, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (sizeof(T) == 2) {
    return load_matrices<true>(channel_chunk<T, kChannels>(rows, 16 * step + lane % 16, channel / 8 + lane / 16));
  } else {
    const auto load = [&](int row, int column) {
      const char* chunk = channel_chunk<T, kChannels>(rows, 8 * step + row, column / 4);
      return *reinterpret_cast<const uint32_t*>(chunk + column % 4 * 4);
    };
    const int row = lane % 4, column = channel + lane / 4;
    return {load(row, column), load(row + 4, column), load(row, column + 8), load(row + 4, column + 8)};
  }
}

// sum[0] and sum[1] += left times each of the right matrices.
template <typename T>
FUSED_RNN_DEVICE void multiply_two(float (*sum)[4], const uint4& left, const uint4& right) {
  MmaTraits<T>::multiply(sum[0], left, right.x, right.y, /*full_precision=*/false);
  MmaTraits<T>::multiply(sum[1], left, right.z, right.w, /*full_precision=*/false);
}

// A pixel, by its number among the pixels of all images and its place in its own. Those after the last one have a place
// that no tap reaches an image from.
struct MmaPixel {
  static constexpr int kNowhere = -(1 << 30);
  int index, y, x;

  FUSED_RNN_DEVICE static MmaPixel at(int index, int pixels, int height, int width) {
    const int row = index / width;
    return {index, index < pixels ? row % height : kNowhere, index - row * width};
  }
  // Whether the pixel so many rows below and columns to the right is in the image, and its number.
  FUSED_RNN_DEVICE bool sees(int dy, int dx, int height, int width) const {
    return static_cast<unsigned>(y + dy) < static_cast<unsigned>(height) &&
           static_cast<unsigned>(x + dx) < static_cast<unsigned>(width);
  }
  FUSED_RNN_DEVICE int64_t other(int dy, int dx, int width) const { return index + int64_t(dy) * width + dx; }
};

}  // namespace fused_rnn::cuda
