// The weights of a layer's gates as the forward loop wants them: for each block of kLanes hidden units, for each value
// of the depth, one vector a gate.

#pragma once

#include <ATen/cpu/vec/functional_base.h>

#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/tile.h"

namespace fused_rnn::cpu {
namespace {

// Packs kGates rows-of-a-block of weight [kGates * hidden, depth] into packed [depth, kGates, kLanes]; units from
// `count` on are zero.
template <int kGates, typename T>
inline void pack_gates(const T* weight, int64_t hidden, int64_t depth, int64_t unit, int64_t count, T* packed) {
  constexpr int64_t kStride = kGates * kLanes<T>;
  for (int64_t gate = 0; gate < kGates; ++gate) {
    const T* source = weight + (gate * hidden + unit) * depth;
    T* target = packed + gate * kLanes<T>;
    int64_t k = 0;
    if (count == kLanes<T>)
      for (; k + kLanes<T> <= depth; k += kLanes<T>)
        at::vec::transpose_mxn<T, kLanes<T>, kLanes<T>>(source + k, depth, target + k * kStride, kStride);
    for (; k < depth; ++k)
      for (int64_t lane = 0; lane < kLanes<T>; ++lane)
        target[k * kStride + lane] = lane < count ? source[lane * depth + k] : T(0);
  }
}

// sums[row, gate, unit] += dot(a[row], weight[gate * hidden + unit]) for kRows rows and `count` units: reads the
// weights as they lie, for calls with too few rows to repay packing. sums is [kRows, 4, kLanes]; kColumn says where a
// gate goes.
template <int kRows, int... kColumn, typename T>
inline void dot_gates(const T* a, int64_t a_row, const T* weight, int64_t hidden, int64_t depth, int64_t count,
                      T* sums) {
  constexpr int kColumnOf[] = {kColumn...};
  constexpr int kUnits = 4;
  for (int gate = 0; gate < static_cast<int>(sizeof...(kColumn)); ++gate) {
    for (int64_t unit = 0; unit < count; unit += kUnits) {
      // Past the last unit the last one is computed again: that costs less than a special case.
      const T* source[kUnits];
      unroll<kUnits>([&](auto u) FUSED_RNN_INLINE {
        source[u] = weight + (gate * hidden + (unit + u < count ? unit + u : count - 1)) * depth;
      });
      Tile<T, kRows, kUnits> tile;
      tile.zero();
      // Each group of rows ahead is asked for while this one is read: hardware stops at the end of a page.
      const auto add = [&](int64_t k, int64_t lanes) FUSED_RNN_INLINE {
        Vec<T> factor[kUnits];
        unroll<kUnits>([&](auto u) FUSED_RNN_INLINE {
          __builtin_prefetch(source[u] + kUnits * depth + k);
          factor[u] = load(source[u] + k, lanes);
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
          sums[(row * kVectors + kColumnOf[gate]) * kLanes<T> + unit + u] +=
              at::vec::vec_reduce_all<T>([](Vec<T>& x, Vec<T>& y) { return x + y; }, tile.sum[row][u]);
      });
    }
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
