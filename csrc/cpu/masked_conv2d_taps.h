// What the kernels of masked convolution share: which taps, channels and pixels meet.

#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/tile.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cpu {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Returns the first of `channels` channels that is in group `group` or a later one.
inline int64_t group_begin(const MaskedConv2dSizes& sizes, int64_t group, int64_t channels) {
  return divide_up(group * channels, sizes.data_channels);
}

// Target channels are computed in blocks of at most this many, the columns of a register tile.
template <typename T>
inline constexpr int64_t kBlock = kVectors * kLanes<T>;

// Returns how many values a packed row of `columns` columns takes: whole vectors.
template <typename T>
inline int64_t packed_width(int64_t columns) {
  return divide_up(columns, kLanes<T>) * kLanes<T>;
}

// Calls body(std::integral_constant<int, vectors>) with the number of vectors that hold `columns` (kBlock or fewer).
template <typename T, typename Body>
inline void for_vectors_of(int64_t columns, const Body& body) {
  const int64_t vectors = divide_up(columns, kLanes<T>);
  unroll<kVectors>([&](auto less) { vectors == less + 1 ? body(std::integral_constant<int, less + 1>()) : void(); });
}

// Neighbouring taps of one kernel row; the first reads the source at (row, column) from the target's pixel.
struct Run {
  int64_t tap, taps;
  int64_t row, column;
};

// An image that taps read. Few channels make short sums, so there the taps of a kernel row are merged into one: with
// channels last, the values that they read lie side by side. Merging needs rows with a margin of zeros at both ends.
template <typename T>
struct Source {
  const T* data;  // pixel (0, 0, 0)
  int64_t channels, row_stride;
  bool merged;

  const T* at(const MaskedConv2dSizes& sizes, int64_t image, int64_t row, int64_t column) const {
    return data + (image * sizes.height + row) * row_stride + column * channels;
  }
};

// How many channels are few. Dilated taps do not lie side by side.
inline bool merges_taps(const MaskedConv2dSizes& sizes, int64_t channels) {
  constexpr int64_t kFew = 16;
  return channels < kFew && sizes.dilation_width == 1 && sizes.kernel_width > 1;
}

// Returns how many values the copy of a merged source takes, zero if none is needed.
inline int64_t margins_size(const MaskedConv2dSizes& sizes, int64_t channels) {
  if (!merges_taps(sizes, channels)) return 0;
  return sizes.batch * sizes.height * (sizes.width + sizes.kernel_width - 1) * channels;
}

// Returns the source of `channels` channels at `data`, whose copy with margins, if it needs one, goes to `copy`.
template <typename T>
inline Source<T> make_source(const MaskedConv2dSizes& sizes, int64_t channels, const T* data, T* copy) {
  if (!merges_taps(sizes, channels)) return {data, channels, sizes.width * channels, false};
  return {copy + sizes.kernel_width / 2 * channels, channels, (sizes.width + sizes.kernel_width - 1) * channels, true};
}

// Makes one thread's part of the copy with margins.
template <typename T>
inline void copy_with_margins(const MaskedConv2dSizes& sizes, int64_t channels, const T* data, T* copy, Range rows) {
  const int64_t margin = sizes.kernel_width / 2 * channels;
  const int64_t size = sizes.width * channels;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    T* target = copy + row * (size + 2 * margin);
    std::memset(target, 0, margin * sizeof(T));
    std::memcpy(target + margin, data + row * size, size * sizeof(T));
    std::memset(target + margin + size, 0, margin * sizeof(T));
  }
}

// Calls body(run) for the taps of `taps`, in order.
template <typename Body>
FUSED_RNN_INLINE inline void for_each_run(const MaskedConv2dSizes& sizes, Range taps, bool merged, const Body& body) {
  const int64_t width = sizes.kernel_width;
  for (int64_t tap = taps.begin; tap < taps.end;) {
    const int64_t end = merged ? smaller(taps.end, (tap / width + 1) * width) : tap + 1;
    body(Run{tap, end - tap, (tap / width - sizes.kernel_height / 2) * sizes.dilation_height,
             (tap % width - width / 2) * sizes.dilation_width});
    tap = end;
  }
}

// Returns whether a run at image row `row` reads a row of the image.
inline bool inside(const MaskedConv2dSizes& sizes, const Run& run, int64_t row) {
  return row + run.row >= 0 && row + run.row < sizes.height;
}

// Returns the pixels of a row for which a run reads pixels of the image (or, merged, of the margins).
inline Range clip(const MaskedConv2dSizes& sizes, const Run& run, bool merged) {
  if (merged) return {0, sizes.width};
  return {smaller(larger(0, -run.column), sizes.width), larger(smaller(sizes.width, sizes.width - run.column), 0)};
}

}  // namespace
}  // namespace fused_rnn::cpu
