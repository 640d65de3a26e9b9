// The elements that the forward loop multiplies, for each kind of Factors: how rows of weights and rows of input or
// hidden values become elements, and how the sums of their products become numbers again.

#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/kit/bytes.h"
#include "cpu/kit/pairs.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"
#include "cpu/kit/widened_pairs.h"
#include "cpu/recurrent/stored_weights.h"

namespace fused_rnn::cpu {
namespace {

// Whether input and hidden values are converted before they are multiplied, and whether sums have scales.
template <typename Factors>
inline constexpr bool kConverts = Factors::kTerms > 1;
template <typename Factors>
inline constexpr bool kScaled = Factors::kTerms == 4;

// Returns how many values of scratch packing_rows() needs for `rows` rows.
template <typename Factors, typename T>
int64_t packing_scratch(const StoredMatrix<T>& weight, int64_t rows) {
  if constexpr (!kConverts<Factors>)
    return weight.scratch(rows);
  else
    return rows * divide_up(weight.columns(), Factors::kTerms) + weight.scratch(1);
}

// Returns `count` rows of weights from `first` on as elements, [count, elements of a row], in place where that is
// possible, else in `scratch`. Writes their scales and offsets, if elements have them.
template <typename Factors, typename T>
const T* packing_rows(const StoredMatrix<T>& weight, int64_t first, int64_t count, T* scratch, T* scales,
                      int32_t* offsets) {
  if constexpr (!kConverts<Factors>) {
    return weight.rows(first, count, scratch);
  } else {
    const int64_t columns = weight.columns(), elements = divide_up(columns, Factors::kTerms);
    T* widened = scratch + count * elements;
    for (int64_t row = 0; row < count; ++row) {
      T* target = scratch + row * elements;
      if constexpr (kScaled<Factors>) {
        auto* bytes = reinterpret_cast<int8_t*>(target);
        scales[row] = quantise(weight.rows(first + row, 1, widened), columns, 0, reinterpret_cast<uint8_t*>(bytes));
        int32_t sum = 0;
        for (int64_t column = 0; column < columns; ++column) sum += bytes[column];
        offsets[row] = Factors::kOffset * sum;
      } else if (!weight.pairs(first + row, target)) {
        round_to_pairs(weight.rows(first + row, 1, widened), columns, target);
      }
    }
    return scratch;
  }
}

// Converts a row of `count` input or hidden values to elements at `target`, and writes their scale if they have one.
template <typename Factors, typename T, typename W>
void convert_row(const W* source, int64_t count, T* target, T* scale) {
  if constexpr (!std::is_same_v<W, T>)
    copy_pairs(source, count, target);
  else if constexpr (kScaled<Factors>)
    *scale = quantise(source, count, Factors::kOffset, reinterpret_cast<uint8_t*>(target));
  else if constexpr (std::is_same_v<Factors, WidenedPairs>)
    copy_to_pairs(source, count, target);
  else
    round_to_pairs(source, count, target);
}

// What makes numbers of the sums of products: those of bytes are integers in the bits of floats, others are numbers.
struct NoScales {};
template <typename Factors>
using Scales = std::conditional_t<kScaled<Factors>, ByteScales, NoScales>;

// Returns `before` plus the number that a sum of products stands for.
template <typename T>
FUSED_RNN_INLINE inline Vec<T> add_number(Vec<T> before, Vec<T> sum, const NoScales&, int64_t, int64_t) {
  return before + sum;
}
// `at` is the index of the first weight row in the block's scales. The multiply-add is explicit, since results would
// depend on the number of rows in a tile if the compiler chose where to fuse.
FUSED_RNN_INLINE inline Vec<float> add_number(Vec<float> before, Vec<float> sum, const ByteScales& scales, int64_t row,
                                              int64_t at) {
  const auto integers = at::vec::cast<int32_t>(sum) - Vec<int32_t>::loadu(scales.offset + at);
  const Vec<float> scale = Vec<float>::loadu(scales.weight + at) * Vec<float>(scales.row[row * scales.row_stride]);
  return at::vec::fmadd(at::vec::convert_to_fp_of_same_size<float>(integers), scale, before);
}

}  // namespace
}  // namespace fused_rnn::cpu
