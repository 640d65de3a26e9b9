// The register tile: a few rows times a few vectors of accumulators, the inner loop of every kernel on a processor.

#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <type_traits>

namespace fused_rnn::cpu {
namespace {

template <typename T>
using Vec = at::vec::Vectorized<T>;

// How many values of T a vector holds on this instruction set.
template <typename T>
inline constexpr int64_t kLanes = Vec<T>::size();

// Vectors and rows of the largest tile that still fits the registers: 6 x 4 of 32 with AVX-512, 3 x 4 of 16 otherwise.
// Four vectors are the four gates of an LSTM, or four neighbours in a plain product.
inline constexpr int kVectors = 4;
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int kMaxRows = 6;
#else
inline constexpr int kMaxRows = 3;
#endif

// Loads `count` values (kLanes or fewer); the lanes above are zero.
template <typename T>
inline Vec<T> load(const T* source, int64_t count = kLanes<T>) {
  return count == kLanes<T> ? Vec<T>::loadu(source) : Vec<T>::loadu(source, count);
}

// Stores the first `count` lanes.
template <typename T>
inline void store(T* target, Vec<T> value, int64_t count = kLanes<T>) {
  count == kLanes<T> ? value.store(target) : value.store(target, count);
}

// kRows x kColumns accumulators. Every element is summed over the depth in order, by fused multiply-adds, so that the
// result does not depend on how rows are cut into tiles or work into threads.
template <typename T, int kRows, int kColumns = kVectors>
struct Tile {
  Vec<T> sum[kRows][kColumns];

  void zero() {
    for (auto& row : sum)
      for (auto& value : row) value = Vec<T>(T(0));
  }

  // sum[row][kColumn of position] += sum over k of a[row * a_row + k * a_depth] * b[k * b_depth + position * kLanes].
  template <int... kColumn>
  inline __attribute__((always_inline)) void multiply(const T* __restrict a, int64_t a_row, int64_t a_depth,
                                                      const T* __restrict b, int64_t b_depth, int64_t depth) {
    constexpr int kColumnOf[] = {kColumn...};
    constexpr int kCount = sizeof...(kColumn);
    for (int64_t k = 0; k < depth; ++k) {
      Vec<T> factor[kCount];
#pragma GCC unroll 8
      for (int position = 0; position < kCount; ++position) factor[position] = Vec<T>::loadu(b + position * kLanes<T>);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) {
        const Vec<T> value(a[row * a_row]);
#pragma GCC unroll 8
        for (int position = 0; position < kCount; ++position) {
          Vec<T>& target = sum[row][kColumnOf[position]];
          target = at::vec::fmadd(value, factor[position], target);
        }
      }
      a += a_depth;
      b += b_depth;
    }
  }
};

// Cuts `count` rows into the fewest tiles of at most kMax rows, as even as can be, and calls
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
