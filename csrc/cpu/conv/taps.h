// Which input channels and pixels each tap of a masked convolution multiplies, and in which blocks.

#pragma once

#include <cstdint>

#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cpu {
namespace {

// Returns the first of `channels` channels that is in group `group` or a later one.
inline int64_t group_begin(const MaskedConv2dSizes& sizes, int64_t group, int64_t channels) {
  return first_of_group(group, sizes.data_channels, channels);
}

// Returns those of `channels` channels that are in group `group` of `groups`.
inline Range channels_of(int64_t group, int64_t groups, int64_t channels) {
  return {first_of_group(group, groups, channels), first_of_group(group + 1, groups, channels)};
}

// How many target channels are computed together, at most: the columns of a register tile.
template <typename T>
inline constexpr int64_t kBlock = kVectors * kLanes<T>;

// The most rows of a tile of kColumns vectors. A tile of one column has twice as many rows, since the latency of fused
// multiply-adds is hidden only by some eight independent accumulators.
template <int kColumns>
inline constexpr int kRows = kColumns == 1 ? 2 * kMaxRows : kMaxRows;

// Returns how many values a packed row of `columns` columns takes, which is a multiple of a vector.
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

// Consecutive taps of one kernel row. The first reads the source pixel at the offset (row, column) from the target's.
struct TapRun {
  int64_t tap, taps;
  int64_t row, column;
};

// Whether the taps of a kernel row are merged into one run, which makes longer sums where there are few channels. With
// channels last, the values that neighbouring taps read are contiguous. Merged runs read beyond the ends of a row, so
// images need margins of zeros that are half a kernel wide.
inline bool merges_taps(const MaskedConv2dSizes& sizes, int64_t channels) {
  constexpr int64_t kFew = 16;
  return sizes.kernel_width == 1 || (channels < kFew && sizes.dilation_width == 1);
}

// Calls body(run) for each run of the given taps, in order.
template <typename Body>
FUSED_RNN_INLINE inline void for_each_run(const MaskedConv2dSizes& sizes, Range taps, bool merged, const Body& body) {
  const int64_t width = sizes.kernel_width;
  int64_t row = taps.begin / width, column = taps.begin % width;
  for (int64_t tap = taps.begin; tap < taps.end; ++row, column = 0)
    while (tap < taps.end && column < width) {
      const int64_t count = merged ? smaller(taps.end - tap, width - column) : 1;
      body(TapRun{tap, count, (row - sizes.kernel_height / 2) * sizes.dilation_height,
                  (column - width / 2) * sizes.dilation_width});
      tap += count;
      column += count;
    }
}

// Returns the pixels of a target row for which a run reads pixels inside the image, or, if merged, inside the margins.
inline Range clip(const MaskedConv2dSizes& sizes, const TapRun& run, bool merged) {
  if (merged) return {0, sizes.width};
  return {smaller(larger(0, -run.column), sizes.width), larger(smaller(sizes.width, sizes.width - run.column), 0)};
}

}  // namespace
}  // namespace fused_rnn::cpu
