// A plain matrix product for the large products outside the recurrence, blocked for registers and caches.

#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/tile.h"

namespace fused_rnn::cpu {
namespace {

// A panel is two vectors wide; with 12 rows (AVX-512) or 6 that fills the registers with accumulators.
inline constexpr int kPanelVectors = 2;
inline constexpr int kPanelRows = 2 * kMaxRows;
template <typename T>
inline constexpr int64_t kPanel = kPanelVectors * kLanes<T>;

// A matrix to read: element (r, c) is at data[r * row + c * column].
template <typename T>
struct Matrix {
  const T* data;
  int64_t row, column;
  const T* at(int64_t r, int64_t c) const { return data + r * row + c * column; }
  Matrix from(int64_t r, int64_t c) const { return {at(r, c), row, column}; }
};

// Copies `columns` (kPanel or fewer) columns of b into packed [depth, kPanel], padded with zeros.
template <typename T>
inline void pack_panel(Matrix<T> b, int64_t depth, int64_t columns, T* packed) {
  if (b.column == 1) {
    for (int64_t k = 0; k < depth; ++k, packed += kPanel<T>)
      for (int64_t first = 0; first < kPanel<T>; first += kLanes<T>) {
        const int64_t count = columns - first;
        const auto value = count >= kLanes<T> ? load(b.at(k, first))
                           : count > 0        ? load(b.at(k, first), count)
                                              : Vec<T>(T(0));
        value.store(packed + first);
      }
  } else if (columns == kPanel<T> && b.row == 1) {
    int64_t k = 0;
    for (; k + kLanes<T> <= depth; k += kLanes<T>)
      for (int64_t first = 0; first < kPanel<T>; first += kLanes<T>)
        at::vec::transpose_mxn<T, kLanes<T>, kLanes<T>>(b.at(k, first), b.column, packed + k * kPanel<T> + first,
                                                        kPanel<T>);
    for (; k < depth; ++k)
      for (int64_t column = 0; column < kPanel<T>; ++column) packed[k * kPanel<T> + column] = *b.at(k, column);
  } else {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t column = 0; column < kPanel<T>; ++column)
        packed[k * kPanel<T> + column] = column < columns ? *b.at(k, column) : T(0);
  }
}

// Copies `rows` rows of a, whose columns are contiguous, into packed [depth, rows].
template <typename T>
inline void pack_rows(Matrix<T> a, int64_t depth, int64_t rows, T* packed) {
  for (int64_t k = 0; k < depth; ++k, packed += rows)
    for (int64_t row = 0; row < rows; row += kLanes<T>) {
      const int64_t count = rows - row < kLanes<T> ? rows - row : kLanes<T>;
      store(packed + row, load(a.at(row, k), count), count);
    }
}

// c[kRows, columns] = (accumulate ? c : 0) + a times a panel; columns is kPanel or fewer.
template <typename T, int kRows>
inline void multiply_panel(const T* a, int64_t a_row, int64_t a_depth, const T* panel, int64_t panel_depth,
                           int64_t depth, T* c, int64_t c_row, int64_t columns, bool accumulate) {
  Tile<T, kRows, kPanelVectors> tile;
  tile.zero();
  tile.template multiply<0, 1>(a, a_row, a_depth, panel, panel_depth, depth);
  if (accumulate) tile.add(c, c_row, columns);
  tile.store_to(c, c_row, columns);
}

// Asks for part `index` of `parts` of a block of `rows` rows and `depth` columns, to have it near when it is needed.
template <typename T>
inline void prefetch_block(Matrix<T> a, int64_t rows, int64_t depth, int64_t index, int64_t parts) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const bool by_row = a.column == 1;
  const Range mine = share(by_row ? rows : depth, index, parts);
  for (int64_t i = mine.begin; i < mine.end; ++i)
    for (int64_t j = 0; j < (by_row ? depth : rows); j += kLine)
      __builtin_prefetch(by_row ? a.at(i, j) : a.at(j, i), 0, 2);
}

// How much of a product is in the caches at once: a panel in the first level, packed columns in the second. Each block
// of the depth is summed by itself and then added, which also keeps rounding errors of long sums small.
inline constexpr int64_t kBlockDepth = 256;
inline constexpr int64_t kBlockColumns = 512;
inline constexpr int64_t kBlockRows = 8 * kPanelRows;

// One thread's part of gemm(): all of the given rows and columns.
template <typename T>
inline void gemm_block(Range rows, Range columns, int64_t depth, Matrix<T> a, Matrix<T> b, T* c, int64_t c_row,
                       bool accumulate) {
  if (rows.size() <= 0 || columns.size() <= 0) return;
  const bool pack_a = a.column != 1;
  Scratch<T> packed_b(kBlockDepth * (kBlockColumns + kPanel<T>));
  Scratch<T> packed_a(pack_a ? kBlockDepth * kBlockRows : 0);
  // At least once: a product without depth is zero.
  for (int64_t k = 0; k == 0 || k < depth; k += kBlockDepth) {
    const int64_t part = depth - k < kBlockDepth ? depth - k : kBlockDepth;
    const bool add = accumulate || k > 0;
    for (int64_t first = columns.begin; first < columns.end; first += kBlockColumns) {
      const int64_t width = columns.end - first < kBlockColumns ? columns.end - first : kBlockColumns;
      for (int64_t column = 0; column < width; column += kPanel<T>)
        pack_panel(b.from(k, first + column), part, width - column < kPanel<T> ? width - column : kPanel<T>,
                   packed_b.data() + column * part);
      for (int64_t top = rows.begin; top < rows.end; top += kBlockRows) {
        const int64_t height = rows.end - top < kBlockRows ? rows.end - top : kBlockRows;
        if (pack_a)
          for_each_tile<kPanelRows>(height, [&](auto tile_rows, int64_t row) {
            pack_rows(a.from(top + row, k), part, tile_rows(), packed_a.data() + row * part);
          });
        const int64_t next = top + kBlockRows;
        for (int64_t column = 0; column < width; column += kPanel<T>) {
          if (next < rows.end)
            prefetch_block(a.from(next, k), rows.end - next < kBlockRows ? rows.end - next : kBlockRows, part,
                           column / kPanel<T>, divide_up(width, kPanel<T>));
          for_each_tile<kPanelRows>(height, [&](auto tile_rows, int64_t row) {
            const T* source = pack_a ? packed_a.data() + row * part : a.at(top + row, k);
            multiply_panel<T, tile_rows()>(source, pack_a ? 1 : a.row, pack_a ? tile_rows() : 1,
                                           packed_b.data() + column * part, kPanel<T>, part,
                                           c + (top + row) * c_row + first + column, c_row,
                                           width - column < kPanel<T> ? width - column : kPanel<T>, add);
          });
        }
      }
    }
  }
}

// c[rows, columns] = (accumulate ? c : 0) + a[rows, depth] b[depth, columns] on up to `threads` threads.
// c is row-major with row stride c_row and overlaps neither a nor b. Sums do not depend on `threads`.
template <typename T>
inline void gemm(int64_t rows, int64_t columns, int64_t depth, Matrix<T> a, Matrix<T> b, T* c, int64_t c_row,
                 bool accumulate, int64_t threads) {
  // Below this many multiply-adds a second thread costs more than it brings.
  constexpr int64_t kWorthAThread = 1 << 17;
  const int64_t useful = 1 + rows * columns * depth / kWorthAThread;
  parallel(threads < useful ? threads : useful, [&](int64_t thread, int64_t count) {
    if (rows > columns)
      gemm_block(share(rows, thread, count, kPanelRows), {0, columns}, depth, a, b, c, c_row, accumulate);
    else
      gemm_block({0, rows}, share(columns, thread, count, kPanel<T>), depth, a, b, c, c_row, accumulate);
  });
}

}  // namespace
}  // namespace fused_rnn::cpu
