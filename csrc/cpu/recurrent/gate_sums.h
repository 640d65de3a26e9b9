// Products that add to the gates' sums of a block of hidden units, with weights that are packed or read in place.

#pragma once

#include <ATen/cpu/vec/functional_base.h>

#include <cstdint>

#include "cpu/kit/tile.h"
#include "cpu/recurrent/elements.h"
#include "cpu/recurrent/stored_weights.h"

namespace fused_rnn::cpu {
namespace {

// The sum to which a gate's product with the input is added; a cell's hidden_sum() is the same for the hidden values.
constexpr int input_sum(int gate) { return gate; }

// How many gates a tile of kRows rows and kWidth vectors of units computes at once: as many as fit the registers, since
// the latency of fused multiply-adds is hidden only by some eight independent accumulators.
template <int kRows, int kWidth>
inline constexpr int kGatesAtOnce = kRows * kWidth * 4 <= kMaxRows * kVectors   ? 4
                                    : kRows * kWidth * 2 <= kMaxRows * kVectors ? 2
                                                                                : 1;

// Where the sums of some rows are that a product is added to: [rows, sums of the cell, units].
template <typename T>
struct GateSums {
  T* data;
  int64_t row;        // the stride of a row
  const int* sum_of;  // for each gate, the index of its sum
};

// The sums of all gates of a cell, for its products with the input and with the hidden values.
template <typename Cell>
struct SumsOf {
  int input[Cell::kGates], hidden[Cell::kGates];
  constexpr SumsOf() : input(), hidden() {
    for (int gate = 0; gate < Cell::kGates; ++gate)
      input[gate] = input_sum(gate), hidden[gate] = Cell::hidden_sum(gate);
  }
};
template <typename Cell>
inline constexpr SumsOf<Cell> kSumsOf;

// sums[row, sum of gate, unit] += a[row] times packed weights, for kGates gates from `gate` on and kWidth vectors of
// units. The packed weights are [gates, depth, kWidth vectors], of which `weights` is the first gate's part. `next` are
// the lines to prefetch in the meantime. `scales` are those of the first of the rows and of all gates, whose units are
// `scale_stride` apart. Nothing here depends on the cell, so that all cells share what the compiler makes of it.
template <int kRows, int kWidth, int kGates, typename Factors, typename T>
inline void multiply_gates(const T* a, int64_t a_row, const T* weights, int64_t gate_stride, int64_t depth,
                           PrefetchLines<T> next, int gate, const GateSums<T>& sums, const Scales<Factors>& scales,
                           int64_t scale_stride) {
  constexpr int64_t kUnits = kWidth * kLanes<T>;
  Tile<T, kRows, kGates * kWidth> tile;
  tile.zero();  // the present sums are added at the end, since smaller sums have smaller rounding errors
  tile.template multiply_in_parts<kWidth, Factors>(a, a_row, Factors::kWidth, weights, kUnits, depth, gate_stride,
                                                   next);
  unroll<kGates>([&](auto g) FUSED_RNN_INLINE {
    T* first = sums.data + sums.sum_of[gate + g] * kUnits;
    unroll<kRows * kWidth>([&](auto i) FUSED_RNN_INLINE {
      constexpr int row = i / kWidth, vector = i % kWidth;
      T* at = first + row * sums.row + vector * kLanes<T>;
      const int64_t scale = (gate + g) * scale_stride + vector * kLanes<T>;
      add_number(Vec<T>::loadu(at), tile.sum[row][g * kWidth + vector], scales, row, scale).store(at);
    });
  });
}

// Whether dot_gates() may prefetch the weights that it needs next: with several rows, which leave the time for it, and
// with AVX-512 (measured on Zen 5). It pays if there are so many weights that they come from memory.
#if defined(CPU_CAPABILITY_AVX512)
template <int kRows>
inline constexpr bool kMayPrefetch = kRows > 1;
#else
template <int kRows>
inline constexpr bool kMayPrefetch = false;
#endif
inline constexpr int64_t kMostCachedWeights = 4 << 20;

// sums[row, kSumOf(gate), unit] += dot(a[row], weight[gate * hidden + unit]) for kRows rows, `gates` gates and `count`
// units. The weights are read in place, for calls with too few rows to repay packing. sums is [kRows, kSums, width].
// If kPrefetches, the weights that are needed next are prefetched.
template <int kSums, int kRows, bool kPrefetches, int (*kSumOf)(int), typename T, typename W>
inline void dot_gates(const T* a, int64_t a_row, const W* weight, int gates, int64_t hidden, int64_t depth,
                      int64_t count, T* sums, int64_t width) {
  // Each unit's weights are one stream of memory accesses, of which many are fastest (on Zen 3 and Zen 5).
  constexpr int kUnits = kRows == 1 ? 8 : 4;
  for (int gate = 0; gate < gates; ++gate) {
    for (int64_t unit = 0; unit < count; unit += kUnits) {
      // If fewer than kUnits units are left, the last one is computed repeatedly, which costs less than a special case.
      const W* source[kUnits];
      unroll<kUnits>([&](auto u) FUSED_RNN_INLINE {
        source[u] = weight + (gate * hidden + (unit + u < count ? unit + u : count - 1)) * depth;
      });
      Tile<T, kRows, kUnits> tile;
      tile.zero();
      const auto add = [&](int64_t k, int64_t lanes) FUSED_RNN_INLINE {
        Vec<T> factor[kUnits];
        unroll<kUnits>([&](auto u) FUSED_RNN_INLINE {
          if constexpr (kPrefetches) __builtin_prefetch(source[u] + kUnits * depth + k);
          factor[u] = load_widened<T>(source[u] + k, lanes);
        });
        unroll<kRows>([&](auto row) FUSED_RNN_INLINE {
          const Vec<T> value = load(a + row * a_row + k, lanes);
          unroll<kUnits>(
              [&](auto u) FUSED_RNN_INLINE { tile.sum[row][u] = at::vec::fmadd(value, factor[u], tile.sum[row][u]); });
        });
      };
      int64_t k = 0;
      for (; k + kLanes<T> <= depth; k += kLanes<T>) add(k, kLanes<T>);
      if (k < depth) add(k, depth - k);
      unroll<kRows * kUnits>([&](auto i) FUSED_RNN_INLINE {
        constexpr int row = i / kUnits, u = i % kUnits;
        if (unit + u < count)
          sums[(row * kSums + kSumOf(gate)) * width + unit + u] +=
              at::vec::vec_reduce_all<T>([](Vec<T>& x, Vec<T>& y) { return x + y; }, tile.sum[row][u]);
      });
    }
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
