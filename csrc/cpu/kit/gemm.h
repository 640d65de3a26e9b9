// The matrix product for the large products outside the recurrence, blocked for registers and caches.

#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/kit/packing.h"
#include "cpu/kit/pairs.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

// Returns how many columns the panels have that hold `columns` columns.
template <typename T>
constexpr int64_t padded_to_panels(int64_t columns) {
  return divide_up(columns, kPanel<T>) * kPanel<T>;
}

// Stores the first `columns` columns of a tile to c, or rounded to `rounded` unless that is null.
template <typename AnyTile, typename T>
FUSED_RNN_INLINE inline void store_result(const AnyTile& tile, T* c, c10::BFloat16* rounded, int64_t row_stride,
                                          int64_t columns) {
  if constexpr (std::is_same_v<T, float>)
    if (rounded)
      return tile.for_each_vector(columns, [&](auto row, auto column, int64_t count) FUSED_RNN_INLINE {
        Pairs::store_terms(rounded + row * row_stride + column * kLanes<T>, tile.sum[row][column], count);
      });
  tile.store_to(c, row_stride, columns);
}

// c = a times a panel, or c plus that if `accumulate`. c is [kRows, columns], with columns at most kPanel. The result
// is written to c or, of pairs, rounded to `rounded`, which has the same row stride, unless that is null.
template <typename T, int kRows, typename Factors = Values<T>>
inline void multiply_panel(const T* a, int64_t a_row, int64_t a_depth, const T* panel, int64_t panel_depth,
                           int64_t depth, T* c, int64_t c_row, int64_t columns, bool accumulate,
                           c10::BFloat16* rounded = nullptr) {
  Tile<T, kRows, kPanelVectors> tile;
  // The target's cache lines are prefetched now, to be in the cache when the sums are done.
  for (int64_t row = 0; row < kRows; ++row) {
    __builtin_prefetch(c + row * c_row, 1);
    __builtin_prefetch(c + row * c_row + columns - 1, 1);
  }
  tile.zero();
  tile.template multiply<kPanelVectors, Factors>(a, a_row, a_depth, panel, panel_depth, depth);
  if (accumulate) tile.add(c, c_row, columns);
  if constexpr (Factors::kTerms > 1)
    store_result(tile, c, rounded, c_row, columns);
  else
    tile.store_to(c, c_row, columns);
}

// Prefetches part `index` of `parts` of a block of `rows` rows and `depth` columns, which is needed soon.
template <typename T>
inline void prefetch_block(Matrix<T> a, int64_t rows, int64_t depth, int64_t index, int64_t parts) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const bool by_row = a.column == 1;
  const Range mine = share(by_row ? rows : depth, index, parts);
  for (int64_t i = mine.begin; i < mine.end; ++i)
    for (int64_t j = 0; j < (by_row ? depth : rows); j += kLine)
      __builtin_prefetch(by_row ? a.at(i, j) : a.at(j, i), 0, 2);
}

// Block sizes, chosen so that a panel stays in the first-level cache and the packed columns in the second. Each block
// of the depth is summed from zero and then added to the result, which also keeps the rounding errors of long sums
// small.
inline constexpr int64_t kBlockDepth = 256;
inline constexpr int64_t kBlockColumns = 512;
// The number of rows of a up to which packing b does not pay, so that b is read in place.
inline constexpr int64_t kFewRows = 4 * kPanelRows;
// The number of rows up to which b is read in blocks of only kThinDepth rows and all columns: the hardware prefetcher
// recognises so few parallel streams.
inline constexpr int64_t kVeryFewRows = kMaxRows;
inline constexpr int64_t kThinDepth = 16;

// c = a b, or c += a b. Factors is the type of the elements that are multiplied: Values<T>, or Pairs for matrices of
// bfloat16, of which each element holds two numbers that follow each other in the depth.
template <typename T, typename Factors = Values<T>>
struct Product {
  using Stored = typename Factors::Stored;
  int64_t rows, columns, depth;
  Matrix<Stored> a;  // [rows, depth]
  Matrix<Stored> b;  // [depth, columns]; of bfloat16, its rows are contiguous
  T* c = nullptr;    // [rows, columns], row-major with row stride c_row; overlaps neither a nor b
  int64_t c_row;
  bool accumulate = false;  // whether the results are added to c and row_sums
  T* row_sums = nullptr;    // [rows], written with the sums of a's rows; null if not wanted; needs a.row == 1
  // Shaped like c, or null. If it is given, the results are rounded and written here, and c only holds sums of which
  // not all terms are added yet. Only for products of pairs, and others on the same processors of at most kShallow
  // terms.
  c10::BFloat16* rounded = nullptr;

  // The address of a result in `rounded`, or null.
  c10::BFloat16* rounded_at(int64_t row, int64_t column) const {
    return rounded ? rounded + row * c_row + column : nullptr;
  }
};

// target[row] = sum over the depth of a packed tile, or += if `accumulate`. Reads up to kLanes values beyond the tile.
template <typename T, typename Factors = Values<T>>
inline void add_row_sums(const T* packed, int64_t rows, int64_t depth, T* target, bool accumulate) {
  for (int64_t row = 0; row < rows; row += kLanes<T>) {
    const int64_t count = smaller(rows - row, kLanes<T>);
    // Four independent sums, since each addition to a single one would wait for the one before it.
    Vec<T> sums[4] = {Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0))};
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4)
      for (int64_t i = 0; i < 4; ++i)
        sums[i] = Factors::add_terms(Vec<T>::loadu(packed + (k + i) * rows + row), sums[i]);
    for (; k < depth; ++k) sums[0] = Factors::add_terms(Vec<T>::loadu(packed + k * rows + row), sums[0]);
    const Vec<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    store(target + row, accumulate ? sum + load(target + row, count) : sum, count);
  }
}

// Products of at most this depth spend most of their time on writing c, which is fastest row by row.
inline constexpr int64_t kShallow = 4;
template <typename T>
inline constexpr int64_t kShallowWidth = kVectors * kLanes<T>;

// How the blocks of a product are computed.
template <typename T, typename Factors = Values<T>>
struct BlockPlan {
  bool shallow;                // whether shallow_block() computes them
  bool pack_a, pack_b;         // whether the matrices are packed, rather than read in place
  int64_t depth, columns;      // of a block, at most
  int64_t packed_b, packed_a;  // how many values of memory a thread needs for each

  // Whether elements hold several terms: they do not exist, then, before they are packed.
  static constexpr bool kPaired = Factors::kTerms > 1;

  explicit BlockPlan(const Product<T, Factors>& p)
      : shallow(!kPaired && p.depth <= kShallow && p.b.column == 1),
        // Row sums are computed from packed rows, so a is packed for them even if it could be read in place, which is
        // the case if it has one row.
        pack_a(kPaired || p.a.column != 1 || p.row_sums),
        // Panels of b that few rows use are read in place, except the last one if it is not full.
        pack_b(kPaired || p.b.column != 1 || p.rows > kFewRows) {
    const bool thin = !pack_b && p.rows <= kVeryFewRows;
    depth = Factors::kTerms * (thin ? kThinDepth : kBlockDepth);
    columns = thin ? p.columns : kBlockColumns;
    const int64_t most_depth = divide_up(smaller(p.depth, depth), Factors::kTerms);
    const int64_t most_columns = smaller(p.columns, columns);
    packed_b = most_depth * (shallow ? kShallowWidth<T> : pack_b ? padded_to_panels<T>(most_columns) : kPanel<T>);
    packed_a = pack_a && !shallow ? most_depth * smaller(p.rows, kBlockRows) + kLanes<T> : 0;
  }
  int64_t memory() const { return packed_b + packed_a; }
};

// Computes what gemm_block() does, for a depth of at most kShallow and a matrix b with contiguous rows.
template <typename T>
inline void shallow_block(const Product<T>& p, Range rows, Range columns, T* memory) {
  constexpr int64_t kWidth = kShallowWidth<T>;
  const int64_t whole = columns.begin + columns.size() / kWidth * kWidth, rest = columns.end - whole;
  pack_panel<T, kWidth>(p.b.from(0, whole), p.depth, rest, memory);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    T* c = p.c + row * p.c_row;
    const auto compute = [&](int64_t column, const T* b, int64_t b_row, int64_t width) FUSED_RNN_INLINE {
      Tile<T, 1> tile;
      tile.zero();
      tile.multiply(p.a.at(row, 0), 0, p.a.column, b, b_row, p.depth);
      if (p.accumulate) tile.add(c + column, 0, width);
      store_result(tile, c + column, p.rounded_at(row, column), 0, width);
    };
    for (int64_t column = columns.begin; column < whole; column += kWidth)
      compute(column, p.b.at(0, column), p.b.row, kWidth);
    if (rest > 0) compute(whole, memory, kWidth, rest);
    if (!p.row_sums || columns.begin > 0) continue;
    T sum = p.accumulate ? p.row_sums[row] : T(0);
    for (int64_t k = 0; k < p.depth; ++k) sum += *p.a.at(row, k);
    p.row_sums[row] = sum;
  }
}

// Computes one thread's part of gemm(): the given rows and columns of c. `memory` are BlockPlan::memory() values.
template <typename T, typename Factors>
inline void gemm_block(const Product<T, Factors>& p, Range rows, Range columns, T* memory) {
  if (rows.size() <= 0 || columns.size() <= 0) return;
  const BlockPlan<T, Factors> plan(p);
  constexpr bool kPaired = BlockPlan<T, Factors>::kPaired;
  if constexpr (!kPaired)
    if (plan.shallow) return shallow_block(p, rows, columns, memory);
  const bool pack_a = plan.pack_a, pack_b = plan.pack_b;
  T *const packed_b = memory, *const packed_a = memory + plan.packed_b;
  // The body runs at least once, since a product of depth 0 is zero and must be written.
  for (int64_t k = 0; k == 0 || k < p.depth; k += plan.depth) {
    const int64_t terms = smaller(p.depth - k, plan.depth), part = divide_up(terms, Factors::kTerms);
    const bool add = p.accumulate || k > 0, last = k + plan.depth >= p.depth;
    for (int64_t first = columns.begin; first < columns.end; first += plan.columns) {
      const int64_t width = smaller(columns.end - first, plan.columns);
      for (int64_t column = 0; column < width; column += kPanel<T>)
        if (pack_b || width - column < kPanel<T>)
          pack_panel(p.b.from(k, first + column), terms, smaller(width - column, kPanel<T>),
                     packed_b + (pack_b ? column * part : 0));
      for (int64_t top = rows.begin; top < rows.end; top += kBlockRows) {
        const int64_t height = smaller(rows.end - top, kBlockRows);
        if (pack_a) pack_rows(p.a.from(top, k), terms, height, packed_a);
        if (p.row_sums && first == 0)
          for_each_tile<kPanelRows>(height, [&](auto tile_rows, int64_t row) {
            add_row_sums<T, Factors>(packed_a + row * part, tile_rows(), part, p.row_sums + top + row, add);
          });
        const int64_t next = top + kBlockRows;
        for (int64_t column = 0; column < width; column += kPanel<T>) {
          if (next < rows.end)
            prefetch_block(p.a.from(next, k), smaller(rows.end - next, kBlockRows), terms, column / kPanel<T>,
                           divide_up(width, kPanel<T>));
          const bool packed = pack_b || width - column < kPanel<T>;
          const T* panel = packed_b + (pack_b ? column * part : 0);
          if constexpr (!kPaired)
            if (!packed) panel = p.b.at(k, first + column);
          for_each_tile<kPanelRows>(height, [&](auto tile_rows, int64_t row) {
            // A tile of a has either its rows or its columns side by side.
            const T* source = packed_a + row * part;
            int64_t a_row = 1, a_depth = tile_rows();
            if (p.a.column == 1 && p.a.row != 1) a_row = part, a_depth = 1;
            if constexpr (!kPaired)
              if (!pack_a) source = p.a.at(top + row, k), a_row = p.a.row, a_depth = 1;
            multiply_panel<T, tile_rows(), Factors>(
                source, a_row, a_depth, panel, packed ? kPanel<T> : p.b.row, part,
                p.c + (top + row) * p.c_row + first + column, p.c_row, smaller(width - column, kPanel<T>), add,
                kPaired && last ? p.rounded_at(top + row, first + column) : nullptr);
          });
        }
      }
    }
  }
}

// Copies a matrix, and widens its elements to T: `rows` rows, side by side, of the matrix or of its transpose,
// whichever has contiguous rows.
template <typename T, typename W>
inline Matrix<T> widen(Matrix<W> from, int64_t rows, int64_t columns, T* to) {
  const bool by_row = from.column == 1;
  const int64_t lines = by_row ? rows : columns, width = by_row ? columns : rows;
  for (int64_t line = 0; line < lines; ++line)
    widen_values(by_row ? from.at(line, 0) : from.at(0, line), width, to + line * width);
  return by_row ? Matrix<T>{to, width, 1} : Matrix<T>{to, 1, width};
}

// Computes a product on up to `threads` threads. The result does not depend on their number.
template <typename T, typename Factors = Values<T>>
inline void gemm(const Product<T, Factors>& p, int64_t threads) {
  if constexpr (Factors::kTerms > 1)
    // To make pairs of so few numbers takes longer than to write the result.
    if (p.depth <= kShallow) {
      Scratch<T> a(p.rows * p.depth), b(p.depth * p.columns);
      return gemm<T>({.rows = p.rows,
                      .columns = p.columns,
                      .depth = p.depth,
                      .a = widen(p.a, p.rows, p.depth, a.data()),
                      .b = widen(p.b, p.depth, p.columns, b.data()),
                      .c = p.c,
                      .c_row = p.c_row,
                      .accumulate = p.accumulate,
                      .row_sums = p.row_sums,
                      .rounded = p.rounded},
                     threads);
    }
  // The least number of multiply-adds for which one more thread saves more time than it costs to start.
  constexpr int64_t kWorthAThread = 1 << 17;
  const int64_t useful = 1 + p.rows * p.columns * p.depth / kWorthAThread;
  const int64_t most = smaller(threads, useful);
  ThreadScratch<T> memory(most, BlockPlan<T, Factors>(p).memory());
  parallel(most, [&](int64_t thread, int64_t count) {
    if (p.rows > p.columns)
      gemm_block(p, share(p.rows, thread, count, kPanelRows), {0, p.columns}, memory.of(thread));
    else
      gemm_block(p, {0, p.rows}, share(p.columns, thread, count, kPanel<T>), memory.of(thread));
  });
}

}  // namespace
}  // namespace fused_rnn::cpu
