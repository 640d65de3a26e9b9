// The register tile: a few rows times a few vectors of accumulators. Its multiply() is the inner loop of every kernel
// on the CPU.

#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace fused_rnn::cpu {
namespace {

template <typename T>
using Vec = at::vec::Vectorized<T>;

// How many values of T a vector holds on this instruction set.
template <typename T>
inline constexpr int64_t kLanes = Vec<T>::size();

// Vectors and rows of the largest tile that fits the registers: 6 x 4 of 32 with AVX-512, 3 x 4 of 16 otherwise.
inline constexpr int kVectors = 4;
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int kMaxRows = 6;
#else
inline constexpr int kMaxRows = 3;
#endif

// A tile half as wide and twice as high, for panels of a weight matrix, which are two vectors wide. It loads half as
// many weights for each multiplication, so that the second-level cache is fast enough to supply them.
inline constexpr int kPanelVectors = 2;
inline constexpr int kPanelRows = 2 * kMaxRows;
template <typename T>
inline constexpr int64_t kPanel = kPanelVectors * kLanes<T>;

// Loads `count` values (kLanes or fewer); the remaining lanes are zero.
template <typename T>
inline Vec<T> load(const T* source, int64_t count = kLanes<T>) {
  return count == kLanes<T> ? Vec<T>::loadu(source) : Vec<T>::loadu(source, count);
}

// Loads `count` values (kLanes or fewer) of type W, which is T or a half precision, as T; the remaining lanes are zero.
template <typename T, typename W>
inline Vec<T> load_widened(const W* source, int64_t count) {
  if constexpr (std::is_same_v<T, W>) {
    return load(source, count);
  } else {
    Vec<T> value;
    if (count == kLanes<T>) {
      at::vec::load_to_float(source, value);
    } else {
      W part[kLanes<T>] = {};
      std::memcpy(part, source, static_cast<size_t>(count) * sizeof(W));
      at::vec::load_to_float(part, value);
    }
    return value;
  }
}

// Stores the first `count` lanes.
template <typename T>
inline void store(T* target, Vec<T> value, int64_t count = kLanes<T>) {
  count == kLanes<T> ? value.store(target) : value.store(target, count);
}

// Copies `count` values of type W, which is T or a half precision, to `target` as T.
template <typename T, typename W>
inline void widen_values(const W* source, int64_t count, T* target) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const int64_t lanes = count - i < kLanes<T> ? count - i : kLanes<T>;
    store(target + i, load_widened<T>(source + i, lanes), lanes);
  }
}

// Calls body(std::integral_constant<int, i>) for i from 0 to kCount - 1. Arrays of vectors that are indexed by such
// constants stay in registers, which GCC does not guarantee for a loop that is unrolled by a pragma.
template <int kCount, typename Body>
inline __attribute__((always_inline)) void unroll(const Body& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, kIndex>()), ...);
  }(std::make_integer_sequence<int, kCount>());
}

#define FUSED_RNN_INLINE __attribute__((always_inline))

// The prefetch argument of Tile::multiply(), called at each step of a sum: NoPrefetch does nothing, PrefetchLines
// prefetches one cache line of an array that is needed soon.
struct NoPrefetch {
  FUSED_RNN_INLINE void operator()(int64_t) const {}
  NoPrefetch from(int64_t) const { return {}; }
};
template <typename T>
struct PrefetchLines {
  static constexpr int64_t kValues = 64 / static_cast<int64_t>(sizeof(T));  // in a cache line
  const T* first;
  FUSED_RNN_INLINE void operator()(int64_t k) const { __builtin_prefetch(first + k * kValues, 0, 2); }
  PrefetchLines from(int64_t k) const { return {first + k * kValues}; }
  // Returns the lines that tile number `tile` prefetches: the `size` values at `next` are divided among the tiles that
  // multiply `panel`, one line for each step of `depth`. Tiles that find nothing left prefetch the panel itself, which
  // is in the cache already, so that no branch is needed.
  static PrefetchLines for_tile(const T* next, int64_t size, const T* panel, int64_t tile, int64_t depth) {
    const int64_t portion = tile * depth * kValues;
    return {portion < size ? next + portion : panel};
  }
};

// The `Factors` of a tile that multiplies values of T. Other kinds, whose elements hold several narrow numbers in the
// bits of one float, are in pairs.h, widened_pairs.h and bytes.h.
template <typename T>
struct Values {
  using Stored = T;                        // the type of a term in the arrays that are multiplied
  static constexpr int64_t kTerms = 1;     // terms of a sum that one element of b holds
  static constexpr int64_t kWidth = 1;     // values of T that the same terms take in a
  static constexpr int64_t kInPart = 512;  // elements of a partial sum, see multiply_in_parts()
  static FUSED_RNN_INLINE Vec<T> broadcast(const T* a) { return Vec<T>(*a); }
  static FUSED_RNN_INLINE Vec<T> add_product(Vec<T> a, Vec<T> b, Vec<T> sum) { return at::vec::fmadd(a, b, sum); }
  // Adds all terms of the elements to the sum.
  static FUSED_RNN_INLINE Vec<T> add_terms(Vec<T> elements, Vec<T> sum) { return sum + elements; }
  // Stores the first `count` lanes, each of them a term.
  static FUSED_RNN_INLINE void store_terms(T* target, Vec<T> terms, int64_t count) { store(target, terms, count); }
};

// kRows x kColumns accumulators. Every element is summed over the depth in order, by fused multiply-adds, so that the
// result does not depend on how rows are divided into tiles or work among threads.
template <typename T, int kRows, int kColumns = kVectors>
struct Tile {
  Vec<T> sum[kRows][kColumns];

  FUSED_RNN_INLINE void zero() {
    unroll<kRows * kColumns>([&](auto i) FUSED_RNN_INLINE { sum[i / kColumns][i % kColumns] = Vec<T>(T(0)); });
  }

  // The next three functions load the tile from, store it to, or add to it a row-major matrix of `columns` columns (at
  // most kColumns * kLanes) and row stride `stride`. What is added may be in half precision.
  FUSED_RNN_INLINE void load_from(const T* source, int64_t stride, int64_t columns) {
    for_each_vector(columns, [&](auto row, auto column, int64_t count) FUSED_RNN_INLINE {
      sum[row][column] = load(source + row * stride + column * kLanes<T>, count);
    });
  }
  FUSED_RNN_INLINE void store_to(T* target, int64_t stride, int64_t columns) const {
    for_each_vector(columns, [&](auto row, auto column, int64_t count) FUSED_RNN_INLINE {
      store(target + row * stride + column * kLanes<T>, sum[row][column], count);
    });
  }

  template <typename W>
  FUSED_RNN_INLINE void add(const W* source, int64_t stride, int64_t columns) {
    for_each_vector(columns, [&](auto row, auto column, int64_t count) FUSED_RNN_INLINE {
      sum[row][column] = sum[row][column] + load_widened<T>(source + row * stride + column * kLanes<T>, count);
    });
  }

  // Stores one row, all lanes of it.
  template <typename Row>
  FUSED_RNN_INLINE void store_row(Row row, T* target) const {
    unroll<kColumns>([&](auto column) FUSED_RNN_INLINE { sum[row][column].store(target + column * kLanes<T>); });
  }

  // Calls body(row, column, lanes) for each vector that holds some of the first `columns` values of a row.
  template <typename Body>
  static FUSED_RNN_INLINE void for_each_vector(int64_t columns, const Body& body) {
    unroll<kColumns>([&](auto column) FUSED_RNN_INLINE {
      const int64_t left = columns - column * kLanes<T>;
      const int64_t count = left < kLanes<T> ? left : kLanes<T>;
      if (count > 0) unroll<kRows>([&](auto row) FUSED_RNN_INLINE { body(row, column, count); });
    });
  }

  // sum[row][c] += sum over k of a[row * a_row + k * a_depth] times the c-th vector of row k of b. Vectors of a row are
  // contiguous in groups of kGroup; successive groups are b_group values apart. Calls prefetch(k) at each step of the
  // depth.
  template <int kGroup = kColumns, typename Factors = Values<T>, typename Prefetch = NoPrefetch>
  FUSED_RNN_INLINE void multiply(const T* __restrict a, int64_t a_row, int64_t a_depth, const T* __restrict b,
                                 int64_t b_depth, int64_t depth, int64_t b_group = 0, const Prefetch& prefetch = {}) {
#pragma GCC unroll 1
    for (int64_t k = 0; k < depth; ++k) {
      Vec<T> factor[kColumns];
      unroll<kColumns>([&](auto column) FUSED_RNN_INLINE {
        factor[column] = Vec<T>::loadu(b + column / kGroup * b_group + column % kGroup * kLanes<T>);
      });
      unroll<kRows>([&](auto row) FUSED_RNN_INLINE {
        const auto value = Factors::broadcast(a + row * a_row);
        unroll<kColumns>([&](auto column) FUSED_RNN_INLINE {
          sum[row][column] = Factors::add_product(value, factor[column], sum[row][column]);
        });
      });
      prefetch(k);
      a += a_depth;
      b += b_depth;
    }
  }

  // Computes the same in partial sums of at most Factors::kInPart elements, since the rounding error of a sum grows
  // with its length.
  template <int kGroup = kColumns, typename Factors = Values<T>, typename Prefetch = NoPrefetch>
  FUSED_RNN_INLINE void multiply_in_parts(const T* a, int64_t a_row, int64_t a_depth, const T* b, int64_t b_depth,
                                          int64_t depth, int64_t b_group = 0, const Prefetch& prefetch = {}) {
    constexpr int64_t kPart = Factors::kInPart;
    Tile total;
    for (int64_t k = 0;;) {
      const int64_t end = k + kPart < depth ? k + kPart : depth;
      multiply<kGroup, Factors>(a + k * a_depth, a_row, a_depth, b + k * b_depth, b_depth, end - k, b_group,
                                prefetch.from(k));
      if (end >= depth) break;
      k == 0 ? void(total = *this) : total.add(*this);
      zero();
      k = end;
    }
    if (depth > kPart) add(total);
  }

  FUSED_RNN_INLINE void add(const Tile& other) {
    unroll<kRows * kColumns>([&](auto i) FUSED_RNN_INLINE {
      sum[i / kColumns][i % kColumns] = sum[i / kColumns][i % kColumns] + other.sum[i / kColumns][i % kColumns];
    });
  }
};

// Divides `count` rows into the fewest tiles of at most kMax rows, of nearly equal size, and calls
// body(std::integral_constant<int, rows>, first_row) for each.
template <int kMax, typename Body>
inline void for_each_tile(int64_t count, const Body& body) {
  const int64_t tiles = (count + kMax - 1) / kMax;
  int64_t row = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t rows = (count - row + tiles - tile - 1) / (tiles - tile);
    [&]<int... kLess>(std::integer_sequence<int, kLess...>) {
      ((rows == kLess + 1 ? body(std::integral_constant<int, kLess + 1>(), row) : void()), ...);
    }(std::make_integer_sequence<int, kMax>());
    row += rows;
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
