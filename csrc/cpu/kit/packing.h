// Copies of parts of matrices, in the order in which the register tiles of a product read them.

#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>

#include "cpu/kit/pairs.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

// A matrix that is only read; `row` and `column` are its strides: element (r, c) is data[r * row + c * column].
template <typename T>
struct Matrix {
  const T* data;
  int64_t row, column;
  const T* at(int64_t r, int64_t c) const { return data + r * row + c * column; }
  Matrix from(int64_t r, int64_t c) const { return {at(r, c), row, column}; }
};

// What completes pairs of rows or columns of which one is missing.
inline constexpr c10::BFloat16 kZeros[128] = {};

// Copies the first `columns` columns of b into `packed`, [depth, kWidth], and fills the other columns with zeros.
template <typename T, int64_t kWidth = kPanel<T>>
inline void pack_panel(Matrix<T> b, int64_t depth, int64_t columns, T* packed) {
  if (b.column == 1) {
    for (int64_t k = 0; k < depth; ++k, packed += kWidth)
      for (int64_t first = 0; first < kWidth; first += kLanes<T>) {
        const int64_t count = columns - first;
        const auto value = count >= kLanes<T> ? load(b.at(k, first))
                           : count > 0        ? load(b.at(k, first), count)
                                              : Vec<T>(T(0));
        value.store(packed + first);
      }
  } else if (columns == kWidth && b.row == 1) {
    int64_t k = 0;
    for (; k + kLanes<T> <= depth; k += kLanes<T>)
      for (int64_t first = 0; first < kWidth; first += kLanes<T>)
        at::vec::transpose_mxn<T, kLanes<T>, kLanes<T>>(b.at(k, first), b.column, packed + k * kWidth + first, kWidth);
    for (; k < depth; ++k)
      for (int64_t column = 0; column < kWidth; ++column) packed[k * kWidth + column] = *b.at(k, column);
  } else {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t column = 0; column < kWidth; ++column)
        packed[k * kWidth + column] = column < columns ? *b.at(k, column) : T(0);
  }
}

// The same for a matrix of bfloat16 with contiguous rows, as pairs of neighbouring rows: `packed` is
// [divide_up(depth, 2), kPanel], and a last row without a neighbour is completed by zeros.
inline void pack_panel(Matrix<c10::BFloat16> b, int64_t depth, int64_t columns, float* packed) {
  constexpr int64_t kWidth = kPanel<float>;
  for (int64_t k = 0; k < depth; k += 2, packed += kWidth) {
    const c10::BFloat16 *first = b.at(k, 0), *second = k + 1 < depth ? b.at(k + 1, 0) : kZeros;
    if (columns == kWidth) {  // a constant, for which the compiler makes vector instructions
      join_pairs(first, second, kWidth, packed);
    } else {
      join_pairs(first, second, columns, packed);
      for (int64_t column = columns; column < kWidth; ++column) packed[column] = 0.0f;
    }
  }
}

// The most rows that pack_rows() packs in one call.
inline constexpr int64_t kBlockRows = 8 * kPanelRows;
static_assert(kBlockRows <= std::size(kZeros) && kPanel<float> <= std::size(kZeros));

// Calls body(first column, number of columns) for a few columns after the other. These are packed for all tiles before
// the next few: where columns lie a power of two apart, their cache lines map to the same few sets of the cache and
// would evict one another.
inline constexpr int64_t kColumnsAtOnce = 8;
template <typename Body>
inline void for_few_columns(int64_t columns, const Body& body) {
  for (int64_t first = 0; first < columns; first += kColumnsAtOnce)
    body(first, smaller(columns - first, kColumnsAtOnce));
}

// Copies `count` columns of `rows` rows, from column `first` of a on, whose columns are contiguous, into tiles of
// [depth, tile's rows], one after another.
template <typename T>
inline void pack_columns(Matrix<T> a, int64_t first, int64_t count, int64_t depth, int64_t rows, T* packed) {
  for_each_tile<kPanelRows>(rows, [&](auto tile_rows, int64_t row) {
    for (int64_t k = 0; k < count; ++k)
      std::memcpy(packed + row * depth + (first + k) * tile_rows, a.at(row, k), tile_rows * sizeof(T));
  });
}

// Copies `rows` rows of a, whose columns are contiguous, into tiles of [depth, tile's rows], one after another.
template <typename T>
inline void pack_rows(Matrix<T> a, int64_t depth, int64_t rows, T* packed) {
  for_few_columns(
      depth, [&](int64_t first, int64_t count) { pack_columns(a.from(0, first), first, count, depth, rows, packed); });
}

// The same for a matrix of bfloat16, as pairs of neighbouring columns: tiles are [divide_up(depth, 2), tile's rows], or
// [tile's rows, divide_up(depth, 2)] if not the columns but the rows are contiguous.
inline void pack_rows(Matrix<c10::BFloat16> a, int64_t depth, int64_t rows, float* packed) {
  const int64_t pairs = divide_up(depth, 2);
  if (a.row == 1) {
    alignas(64) float joined[kColumnsAtOnce * kBlockRows];
    for_few_columns(pairs, [&](int64_t first, int64_t count) {
      for (int64_t k = 0; k < count; ++k) {
        const int64_t column = 2 * (first + k);
        join_pairs(a.at(0, column), column + 1 < depth ? a.at(0, column + 1) : kZeros, rows, joined + k * kBlockRows);
      }
      pack_columns<float>({joined, 1, kBlockRows}, first, count, pairs, rows, packed);
    });
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      packed[(row + 1) * pairs - 1] = 0.0f;  // completes the last pair if the depth is odd
      std::memcpy(packed + row * pairs, a.at(row, 0), static_cast<size_t>(depth) * sizeof(c10::BFloat16));
    }
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
