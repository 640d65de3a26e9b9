// What the kernel needs to know of a node of a network, and how the weights of convolutions are packed for it.

#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/kit/division.h"
#include "params/pixel_network.h"

namespace fused_rnn::cuda {

constexpr int kPixelThreads = 256;   // of a block
constexpr int kRowTile = 8;          // the pixels of a row whose sums a thread computes together
constexpr int kMostBlockImages = 4;  // the most images of a block, whose sums at a pixel a thread computes together

// How many values are loaded together: 16 bytes.
template <typename T>
constexpr int kPerVector = static_cast<int>(16 / sizeof(T));

// How the weights of a convolution are packed: [taps, in_channels, groups, width]. The output channels are those of one
// group after the other, each followed by zeros up to `width`, for a vector to belong to one group only.
struct PixelPacking {
  int64_t taps, groups, width;

  // Packs for a network with so many groups of channels. Where it has several, a convolution that does not distinguish
  // them is divided into them all the same, to be computed group by group.
  PixelPacking(const MaskedConv2dSizes& sizes, int64_t network_groups, int64_t element_bytes)
      : taps(sizes.dense_taps + sizes.centre_depends_on_groups()),
        groups(std::max(network_groups, sizes.data_channels)),
        width(round_up(divide_up(sizes.out_channels, groups), 16 / element_bytes)) {}

  int64_t columns() const { return groups * width; }
  int64_t size(int64_t in_channels) const { return taps * in_channels * columns(); }
};

// A value at the pixels of a block's row. The rows before it are found from `data`.
template <typename T>
struct PixelPlace {
  T* data;  // as in PixelValue
  T* row;   // the current row of pixels of the first image of the grid; set by the kernel
  int64_t image_stride;
  int row_stride, column_stride, rows, channels;
};

// A convolution; see PixelConvolution.
template <typename T>
struct PixelSums {
  const T* weights;  // packed
  const T* bias;     // or null
  int in_channels, out_channels, kernel_width, middle_row, middle_column, dilation_height, dilation_width;
  int taps_above, dense_taps;  // of these taps, the first ones are those in the rows above
  int groups, width;           // as they are packed
  bool centre_by_groups, own_group;
  bool vectors;  // whether the input's channels are loaded 16 bytes at once
  // 2^log_lanes vectors of output channels are computed at once, and sums are cut into 2^log_row_slices parts for whole
  // rows, or 2^log_pixel_slices for single pixels; each thread computes one part of one vector.
  int log_lanes, log_row_slices, log_pixel_slices;
};

template <typename T>
struct PixelTask {
  PixelNodeKind kind;
  bool whole_row;
  bool follows;            // whether each thread goes on with this task where it has computed the task before
  bool takes[2];           // then, which inputs are the output of the task before
  int from, to, channels;  // as in PixelNode
  PixelPlace<T> inputs[2], output;
  PixelSums<T> sums;  // of kConvolution
};

}  // namespace fused_rnn::cuda
