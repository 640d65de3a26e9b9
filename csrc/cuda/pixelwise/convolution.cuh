// The sums of a masked convolution for some pixels of a block's images.

#pragma once

#include <algorithm>

#include "cuda/kit/platform.cuh"
#include "cuda/pixelwise/task.h"

namespace fused_rnn::cuda {

template <typename T>
struct alignas(16) Vector {
  T at[kPerVector<T>];
};

template <typename T>
FUSED_RNN_DEVICE Vector<T> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}

// Some columns of a row, of some images of a block.
struct PixelRange {
  int first_image, images, row, first_column, columns;

  FUSED_RNN_DEVICE int count() const { return images * columns; }
  // The image of a pixel, counted from the first one, and its column.
  FUSED_RNN_DEVICE int image(int pixel) const { return columns == 1 ? pixel : pixel / columns; }
  FUSED_RNN_DEVICE int column(int pixel) const { return first_column + (columns == 1 ? 0 : pixel % columns); }
};

// Returns the channels of a value at a pixel of the current row.
template <typename T>
FUSED_RNN_DEVICE T* at(const PixelPlace<T>& place, int image, int column) {
  return place.row + image * place.image_stride + column * place.column_stride;
}

// The products of some taps in raster order with the input channels of each; of the last tap, perhaps only with the
// first channels. Together they are `depth` products for each sum.
struct TapProducts {
  int first_tap, depth;
};

// The taps that read rows above the pixel's own, those that read its own row, or all.
enum class TapRows { kAbove, kOwn, kAll };

template <typename T>
FUSED_RNN_DEVICE TapProducts tap_products(const PixelSums<T>& sums, TapRows rows, int group) {
  const int first = rows == TapRows::kOwn ? sums.taps_above : 0;
  const int end = rows == TapRows::kAbove ? sums.taps_above : sums.dense_taps;
  int depth = end > first ? (end - first) * sums.in_channels : 0;
  // Groups see those before them through the centre tap, which is the next one after those that all groups have.
  if (rows != TapRows::kAbove && sums.centre_by_groups)
    depth += static_cast<int>(first_of_group(group + sums.own_group, sums.groups, sums.in_channels));
  return {first, depth};
}

// Adds products `begin` to `end`, of those that start at `first_tap`, to the sums of a vector of output channels at
// kTile pixels. `weights` are those of the first product.
template <int kTile, typename T>
FUSED_RNN_DEVICE void add_products(const PixelSums<T>& convolution, const PixelPlace<T>& input, const PixelRange& range,
                                   int width, int first_pixel, int first_tap, int begin, int end, const T* weights,
                                   T (&sums)[kTile][kPerVector<T>]) {
  constexpr int kPer = kPerVector<T>;
  constexpr int kNowhere = -(1 << 30);  // a column outside of the image, with any tap
  const T* const images = input.data + range.first_image * input.image_stride;
  int image[kTile], column[kTile];
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    const int pixel = first_pixel + r;
    const bool there = pixel < range.count();
    image[r] = there ? range.image(pixel) * static_cast<int>(input.image_stride) : 0;
    column[r] = there ? range.column(pixel) : kNowhere;
  }
  const int64_t stride = int64_t(convolution.groups) * convolution.width;
  for (int k = begin; k < end;) {
    const int tap = first_tap + k / convolution.in_channels, channel = k % convolution.in_channels;
    const int count = std::min(convolution.in_channels - channel, end - k);
    const int row = range.row + (tap / convolution.kernel_width - convolution.middle_row) * convolution.dilation_height;
    const int across = (tap % convolution.kernel_width - convolution.middle_column) * convolution.dilation_width;
    if (row < 0) {
      k += count;
      continue;
    }
    const T* const source = images + row % input.rows * input.row_stride + channel;
    int from[kTile];  // of the pixel's channels in the source; negative outside of the image, where they are zero
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const int at = column[r] + across;
      from[r] = at >= 0 && at < width ? image[r] + at * input.column_stride : -1;
    }
    const T* weight = weights + k * stride;
    int i = 0;
    if (convolution.vectors)
#pragma unroll(kTile == 1 ? 4 : 1)
      for (; i + kPer <= count; i += kPer, weight += kPer * stride) {
        Vector<T> factors[kPer];
#pragma unroll
        for (int v = 0; v < kPer; ++v) factors[v] = load_vector(weight + v * stride);
#pragma unroll
        for (int r = 0; r < kTile; ++r) {
          const Vector<T> values = from[r] >= 0 ? load_vector(source + from[r] + i) : Vector<T>{};
#pragma unroll
          for (int v = 0; v < kPer; ++v)
#pragma unroll
            for (int j = 0; j < kPer; ++j) sums[r][j] += values.at[v] * factors[v].at[j];
        }
      }
    for (; i < count; ++i, weight += stride) {
      const Vector<T> factors = load_vector(weight);
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        const T value = from[r] >= 0 ? source[from[r] + i] : T(0);
#pragma unroll
        for (int j = 0; j < kPer; ++j) sums[r][j] += value * factors.at[j];
      }
    }
    k += count;
  }
}

// Computes the sums of a group of output channels at some pixels, without bias, and calls
// finish(image, column, channel, sum) for each; channels are counted within the group. All threads of the block call
// this. `parts` is shared memory for kTile vectors of each thread. How a sum is divided depends neither on the images
// nor on their number.
template <int kTile, typename T, typename Finish>
FUSED_RNN_DEVICE void convolve(const PixelTask<T>& task, TapRows rows, int group, int channels, const PixelRange& range,
                               int width, T* parts, const Finish& finish) {
  constexpr int kPer = kPerVector<T>;
  const PixelSums<T>& convolution = task.sums;
  const TapProducts products = tap_products(convolution, rows, group);
  const int log_slices = range.columns == 1 ? convolution.log_pixel_slices : convolution.log_row_slices;
  const int log_lanes = convolution.log_lanes, lanes = 1 << log_lanes, slices = 1 << log_slices;
  const int tiles_at_once = kPixelThreads >> (log_lanes + log_slices);
  const int thread = static_cast<int>(threadIdx.x), lane = thread & (lanes - 1);
  const int slice = thread >> log_lanes & (slices - 1), tile = thread >> (log_lanes + log_slices);
  const int share = (products.depth + slices * kPer - 1) / kPer >> log_slices;  // of a slice, in vectors
  const int begin = std::min(slice * share * kPer, products.depth),
            end = std::min(begin + share * kPer, products.depth);
  const T* weights = convolution.weights + group * convolution.width +
                     int64_t(products.first_tap) * convolution.in_channels * convolution.groups * convolution.width;
  for (int first_pixel = 0; first_pixel < range.count(); first_pixel += tiles_at_once * kTile)
    for (int first_channel = 0; first_channel < channels; first_channel += lanes * kPer) {
      T sums[kTile][kPer] = {};
      const int pixel = first_pixel + tile * kTile, channel = first_channel + lane * kPer;
      if (pixel < range.count() && channel < channels)
        add_products(convolution, task.inputs[0], range, width, pixel, products.first_tap, begin, end,
                     weights + channel, sums);
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        Vector<T> part;
#pragma unroll
        for (int j = 0; j < kPer; ++j) part.at[j] = sums[r][j];
        reinterpret_cast<Vector<T>*>(parts)[(((tile << log_slices | slice) * kTile + r) << log_lanes) + lane] = part;
      }
      block_barrier();
      // The parts are [tile, slice, pixel of the tile, channel].
      const int log_row = log_lanes + (kPer == 4 ? 2 : 1);
      for (int e = thread; e < tiles_at_once * kTile << log_row; e += kPixelThreads) {
        const int c = e & ((1 << log_row) - 1), r = (e >> log_row) % kTile, t = (e >> log_row) / kTile;
        const int finished = first_pixel + t * kTile + r;
        if (finished >= range.count() || first_channel + c >= channels) continue;
        T sum = 0;
        for (int s = 0; s < slices; ++s) sum += parts[((((t << log_slices | s) * kTile) + r) << log_row) + c];
        finish(range.first_image + range.image(finished), range.column(finished), first_channel + c, sum);
      }
      block_barrier();
    }
}

}  // namespace fused_rnn::cuda
