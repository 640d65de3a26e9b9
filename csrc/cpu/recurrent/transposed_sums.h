// Products of weights, read in place row by row, and batch rows that lie side by side as columns: for a layer of one
// step with so many batch rows that dot products would be slower, and so few steps that packing would not be repaid.

#pragma once

#include <cstdint>

#include "cpu/kit/gemm.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

// sums[unit, column] += dot(weights[unit], columns[., column]), for `count` units and kColumns vectors of columns.
// weights are [count, depth], columns [depth, kPanel], sums [count, kPanel]. Each tile prefetches the rows of the next,
// the last one those at `next`.
template <int kColumns, typename Factors, typename T>
inline void multiply_columns(const T* weights, int64_t count, int64_t depth, const T* columns, const T* next, T* sums) {
  for_each_tile<kPanelRows>(count, [&](auto units, int64_t first) {
    const T* rows = weights + first * depth;
    const T* following = first + units() < count ? rows + units() * depth : next;
    Tile<T, units(), kColumns> tile;
    tile.zero();  // the present sums are added at the end, since smaller sums have smaller rounding errors
    tile.template multiply_in_parts<kColumns, Factors>(rows, depth, 1, columns, kPanel<T>, depth, 0,
                                                       PrefetchLines<T>{following});
    tile.add(sums + first * kPanel<T>, kPanel<T>, kColumns * kLanes<T>);
    tile.store_to(sums + first * kPanel<T>, kPanel<T>, kColumns * kLanes<T>);
  });
}

// Sets each column of a panel to a number of its row.
template <typename T>
inline void fill_rows(const T* numbers, int64_t count, T* panel) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t lane = 0; lane < kPanel<T>; lane += kLanes<T>) Vec<T>(numbers[i]).store(panel + i * kPanel<T> + lane);
}

// Writes the transpose of [kRows, kPanel] to `target`, which is [kPanel, kRows] with row stride `stride`.
template <int64_t kRows, typename T>
inline void transpose_panel(const T* panel, T* target, int64_t stride) {
  for (int64_t row = 0; row < kRows; row += kLanes<T>)
    for (int64_t column = 0; column < kPanel<T>; column += kLanes<T>)
      at::vec::transpose_mxn<T, kLanes<T>, kLanes<T>>(panel + row * kPanel<T> + column, kPanel<T>,
                                                      target + column * stride + row, stride);
}

}  // namespace
}  // namespace fused_rnn::cpu
