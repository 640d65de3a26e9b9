// One masked convolution of a network that is evaluated pixel by pixel. Its sums are the same, in the same order, as
// those of the kernel for whole images.

#pragma once

#include <cstring>

#include "cpu/conv/correlation.h"
#include "params/pixel_network.h"

namespace fused_rnn::cpu {
namespace {

// The taps that read rows above the pixel's own, those that read its own row, or all.
enum class TapRows { kAbove, kOwn, kAll };

// Pixels of a row: some columns of some images.
struct Pixels {
  Range images, columns;
  int64_t row;
};

template <typename T>
Correlation<T> correlation(const PixelConvolution<T>& convolution) {
  const MaskedConv2dSizes& s = convolution.sizes;
  return {s, false, s.in_channels, s.out_channels, convolution.bias, convolution.weight};
}

// Calls body(panel) for the panels of one of the network's groups of channels, in the order of summation, and returns
// where the next group's weights begin. A convolution has as many groups as the network, or one, or, in a network
// of one group, any number.
template <typename T, typename Body>
int64_t for_each_panel_of(const Correlation<T>& c, int64_t group, int64_t groups, int64_t packed, const Body& body) {
  packed = for_each_dense_panel(c, channels_of(group, groups, c.columns), packed, body);
  const Range own = groups > 1 ? Range{group, group + 1} : Range{0, c.sizes.data_channels};
  for (int64_t g = own.begin; g < own.end; ++g) packed = for_each_centre_panel(c, g, packed, body);
  return packed;
}

// Calls body(image, column, count, whether they are images) for lines of pixels that can be computed together: the same
// column of all images, or all columns of one image.
template <typename Body>
inline void for_each_line(Range images, Range columns, const Body& body) {
  if (columns.size() == 1) return body(images.begin, columns.begin, images.size(), true);
  for (int64_t image = images.begin; image < images.end; ++image) body(image, columns.begin, columns.size(), false);
}

// Adds a panel's products with the taps of the given rows to the sums of some pixels.
template <typename T, int kColumns>
void add_panel(const PixelConvolution<T>& convolution, const Panel& panel, const T* packed, const PixelValue<T>& input,
               const PixelValue<T>& output, TapRows tap_rows, const Pixels& pixels) {
  const MaskedConv2dSizes& s = convolution.sizes;
  constexpr int64_t kWidth = kColumns * kLanes<T>;
  const int64_t depth = panel.channels.size();
  const int64_t last = panel.columns.size() - (kColumns - 1) * kLanes<T>;
  const bool merged = merges_taps(s, s.in_channels);
  const bool has_taps_above = s.kernel_height > 1;
  if (panel.first && (tap_rows != TapRows::kOwn || !has_taps_above))
    for (int64_t image = pixels.images.begin; image < pixels.images.end; ++image)
      for (int64_t column = pixels.columns.begin; column < pixels.columns.end; ++column) {
        T* sums = output.at(image, pixels.row, column) + panel.columns.begin;
        const auto bytes = panel.columns.size() * sizeof(T);
        if (convolution.bias)
          std::memcpy(sums, convolution.bias + panel.columns.begin, bytes);
        else
          std::memset(sums, 0, bytes);
      }
  for_each_run(s, panel.taps, merged, [&](const TapRun& run) {
    const bool wanted = tap_rows == TapRows::kAll || (tap_rows == TapRows::kAbove) == (run.row < 0);
    if (!wanted || pixels.row + run.row < 0) return;
    const Range inside = clip(s, run, merged);
    const Range columns = {larger(inside.begin, pixels.columns.begin), smaller(inside.end, pixels.columns.end)};
    if (columns.size() <= 0) return;
    const T* weights = packed + (run.tap - panel.taps.begin) * depth * kWidth;
    for_each_line(pixels.images, columns, [&](int64_t image, int64_t column, int64_t count, bool images) {
      const int64_t from_stride = images ? input.image_stride : input.column_stride;
      const int64_t to_stride = images ? output.image_stride : output.column_stride;
      const T* from = input.at(image, pixels.row + run.row, column + run.column) + panel.channels.begin;
      T* to = output.at(image, pixels.row, column) + panel.columns.begin;
      for_each_tile<kRows<kColumns>>(count, [&](auto rows, int64_t first) {
        Tile<T, rows(), kColumns> tile;
        T* sums = to + first * to_stride;
        merged ? load_tile(tile, sums, to_stride, last) : tile.zero();
        tile.multiply(from + first * from_stride, from_stride, 1, weights, kWidth, run.taps * depth);
        if (!merged) add_tile(tile, sums, to_stride, last);
        store_tile(tile, sums, to_stride, last);
      });
    });
  });
}

}  // namespace
}  // namespace fused_rnn::cpu
