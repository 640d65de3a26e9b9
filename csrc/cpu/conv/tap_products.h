// The input gradient of a layer with few input channels. Summed tap by tap, most lanes of a vector would be idle, as
// the gradient has few channels. Here the columns of the product are all taps and channels: each pixel of the source is
// multiplied once by all weights, and each product is then added to the target pixel of its tap. The order of summation
// is that of a sum tap by tap, and so are the bits.

#pragma once

#include "cpu/conv/correlation.h"
#include "cpu/conv/images.h"

namespace fused_rnn::cpu {
namespace {

// Whether the dense taps of an input gradient are computed like this: if there are few target channels on every
// instruction set, and if taps are not merged, whose sums have another order.
template <typename T>
bool multiplies_all_taps(const Correlation<T>& c) {
  constexpr int64_t kFewColumns = 4;
  return c.mirrored && c.columns <= kFewColumns && c.dense_taps().size() > 1 && !merges_taps(c.sizes, c.channels);
}

template <typename T>
struct TapProducts {
  const Correlation<T>& c;

  // The columns of the product: all dense taps, and of each all target channels.
  int64_t columns() const { return c.dense_taps().size() * c.columns; }
  // How many values the packed weights take, and the products of a row of pixels.
  int64_t weights_size() const { return c.channels * packed_width<T>(columns()); }
  int64_t row_size() const { return c.sizes.width * packed_width<T>(columns()); }

  // Packs one thread's share of the weights, as [block of columns][source channel][column of the block].
  void pack(T* packed, int64_t thread, int64_t team) const {
    const Range channels = share(c.channels, thread, team);
    for_each_block([&](Range block, int64_t width) {
      T* const of_block = packed + block.begin * c.channels;
      for (int64_t channel = channels.begin; channel < channels.end; ++channel)
        for (int64_t column = 0; column < width; ++column) {
          const int64_t at = block.begin + column, tap = c.dense_taps().begin + at / c.columns;
          of_block[channel * width + column] =
              at < block.end ? c.weight.at(at % c.columns, channel)[tap * c.weight.tap_stride] : T(0);
        }
    });
  }

  // Computes the target's rows `rows`; `image` are the rows of their image, `products` is memory for a row of them.
  void add_rows(const T* packed, Rows<const T> source, Rows<T> target, Range rows, Range image, T* products) const {
    const MaskedConv2dSizes& s = c.sizes;
    for (int64_t row = rows.begin; row < rows.end; ++row)
      for (int64_t pixel = 0; pixel < s.width; ++pixel)
        for (int64_t column = 0; column < c.columns; ++column) target.at(row, pixel)[column] = c.bias[column];
    const int64_t below = s.kernel_height / 2 * s.dilation_height;
    for (int64_t row = rows.begin; row < smaller(image.end, rows.end + below); ++row) {
      multiply(packed, source, row, products);
      for_each_run(s, c.dense_taps(), false, [&](const TapRun& run) {
        if (rows.contains(row - run.row)) add_tap(run, products, target.at(row - run.row, 0));
      });
    }
  }

 private:
  // Calls body(columns, their number rounded up to whole vectors) for blocks that a tile multiplies together.
  template <typename Body>
  void for_each_block(const Body& body) const {
    for (int64_t begin = 0; begin < columns(); begin += kBlock<T>) {
      const Range block = {begin, smaller(begin + kBlock<T>, columns())};
      body(block, packed_width<T>(block.size()));
    }
  }

  // Multiplies all pixels of a source row.
  void multiply(const T* packed, Rows<const T> source, int64_t row, T* products) const {
    const int64_t stride = packed_width<T>(columns());
    for_each_block([&](Range block, int64_t width) {
      for_vectors_of<T>(width, [&](auto vectors) {
        constexpr int kColumns = vectors();
        for_each_tile<kRows<kColumns>>(c.sizes.width, [&](auto rows, int64_t pixel) {
          Tile<T, rows(), kColumns> tile;
          tile.zero();
          tile.multiply(source.at(row, pixel), source.channels, 1, packed + block.begin * c.channels, width,
                        c.channels);
          store_tile(tile, products + pixel * stride + block.begin, stride, kLanes<T>);
        });
      });
    });
  }

  // Adds the products of a tap to a target row.
  void add_tap(const TapRun& run, const T* products, T* target) const {
    const int64_t stride = packed_width<T>(columns());
    const Range pixels = clip(c.sizes, run, false);
    const T* product = products + (pixels.begin + run.column) * stride + (run.tap - c.dense_taps().begin) * c.columns;
    T* sum = target + pixels.begin * c.columns;
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel, product += stride)
      for (int64_t column = 0; column < c.columns; ++column) *sum++ += product[column];
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
