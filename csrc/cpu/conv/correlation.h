// The sum that masked convolution computes for each pixel, its division into panels of packed weights, and the order of
// summation. The forward pass over whole images and the pixel-by-pixel evaluation of a network share it, so that they
// give the same bits.

#pragma once

#include "cpu/conv/taps.h"

namespace fused_rnn::cpu {
namespace {

// target[p] = bias + sum over taps of weight[tap] source[p + tap], for all pixels p.
template <typename T>
struct Correlation {
  const MaskedConv2dSizes& sizes;
  bool mirrored;  // whether this is the input gradient, where the last taps are active instead of the first, and
                  // channel groups read later groups instead of earlier ones
  int64_t channels, columns;
  const T* bias;            // [columns], or null
  Weights<const T> weight;  // [columns, channels, taps]: the columns are the target's channels

  // The active taps that every target channel has for all source channels; with several groups the centre tap is not
  // among them.
  Range dense_taps() const {
    if (mirrored) return {sizes.taps() - sizes.dense_taps, sizes.taps()};
    return {0, sizes.dense_taps};
  }
  // The source channels that a group of target channels reads through the centre tap.
  Range centre_channels(int64_t group) const {
    if (mirrored) return {group_begin(sizes, group + !sizes.own_group, channels), channels};
    return {0, group_begin(sizes, group + sizes.own_group, channels)};
  }
};

// A block of target columns, and the taps and source channels that one pass adds to them.
struct Panel {
  Range columns, taps, channels;
  bool first;      // whether the sums begin with this panel, from the bias
  int64_t packed;  // the offset of its weights, packed as [tap, channel, column]
};

// Cuts the product of some columns, taps and channels into panels, and calls body(panel) for each. The weights of the
// first one are packed at the offset `packed`; returns where those of the next one begin.
template <typename T, typename Body>
int64_t cut_panels(Range columns, Range taps, Range channels, bool first, int64_t packed, const Body& body) {
  for (int64_t begin = columns.begin; begin < columns.end; begin += kBlock<T>) {
    const Panel panel = {{begin, smaller(begin + kBlock<T>, columns.end)}, taps, channels, first, packed};
    body(panel);
    packed += taps.size() * channels.size() * packed_width<T>(panel.columns.size());
  }
  return packed;
}

// Calls body(panel) for each panel of the taps that all channels have, and returns where the next panel's weights
// begin.
template <typename T, typename Body>
int64_t for_each_dense_panel(const Correlation<T>& c, Range columns, int64_t packed, const Body& body) {
  return cut_panels<T>(columns, c.dense_taps(), {0, c.channels}, true, packed, body);
}
// Does the same for the centre tap of one group of channels; with a single group, it is among the dense taps.
template <typename T, typename Body>
int64_t for_each_centre_panel(const Correlation<T>& c, int64_t group, int64_t packed, const Body& body) {
  const int64_t centre = c.sizes.centre();
  const Range channels = c.centre_channels(group);
  if (!c.sizes.centre_depends_on_groups() || channels.size() <= 0) return packed;
  return cut_panels<T>(channels_of(group, c.sizes.data_channels, c.columns), {centre, centre + 1}, channels, false,
                       packed, body);
}

// Calls body(panel) for each panel, in the order of summation, and returns how many values all packed weights take.
template <typename T, typename Body>
int64_t for_each_panel(const Correlation<T>& c, const Body& body) {
  int64_t packed = for_each_dense_panel(c, {0, c.columns}, 0, body);
  for (int64_t group = 0; group < c.sizes.data_channels; ++group)
    packed = for_each_centre_panel(c, group, packed, body);
  return packed;
}

// Packs one thread's share of a panel's weights. The loops are ordered so that the cache lines that a vector's columns
// are read from and written to are used completely while they are in the first-level cache.
template <typename T>
void pack(const Correlation<T>& c, const Panel& panel, T* packed, int64_t thread, int64_t team) {
  const int64_t width = packed_width<T>(panel.columns.size());
  const Range channels = share(panel.channels.size(), thread, team, kLanes<T>);
  for (int64_t first = 0; first < width; first += kLanes<T>)
    for (int64_t channel = channels.begin; channel < channels.end; ++channel)
      for (int64_t column = first; column < first + kLanes<T>; ++column) {
        const bool there = column < panel.columns.size();
        const T* weight = c.weight.at(panel.columns.begin + (there ? column : 0), panel.channels.begin + channel);
        T* target = packed + channel * width + column;
        for (int64_t tap = panel.taps.begin; tap < panel.taps.end; ++tap) {
          *target = there ? weight[tap * c.weight.tap_stride] : T(0);
          target += panel.channels.size() * width;
        }
      }
}

// The next three functions add to, load or store a tile as a row-major matrix whose rows have `last` values (kLanes or
// fewer) in the last vector.
template <typename T, int kRows, int kColumns>
FUSED_RNN_INLINE inline void add_tile(Tile<T, kRows, kColumns>& tile, const T* source, int64_t stride, int64_t last) {
  unroll<kRows>([&](auto row) FUSED_RNN_INLINE {
    unroll<kColumns>([&](auto column) FUSED_RNN_INLINE {
      const T* values = source + row * stride + column * kLanes<T>;
      auto& sum = tile.sum[row][column];
      sum = sum + (column + 1 < kColumns ? Vec<T>::loadu(values) : load(values, last));
    });
  });
}
template <typename T, int kRows, int kColumns>
FUSED_RNN_INLINE inline void load_tile(Tile<T, kRows, kColumns>& tile, const T* source, int64_t stride, int64_t last) {
  tile.zero();
  add_tile(tile, source, stride, last);
}
template <typename T, int kRows, int kColumns>
FUSED_RNN_INLINE inline void store_tile(const Tile<T, kRows, kColumns>& tile, T* target, int64_t stride, int64_t last) {
  unroll<kRows>([&](auto row) FUSED_RNN_INLINE {
    unroll<kColumns>([&](auto column) FUSED_RNN_INLINE {
      T* values = target + row * stride + column * kLanes<T>;
      column + 1 < kColumns ? tile.sum[row][column].store(values) : store(values, tile.sum[row][column], last);
    });
  });
}

}  // namespace
}  // namespace fused_rnn::cpu
