// Weights rounded to bfloat16 that are multiplied by numbers in float32: half the bytes of float32 weights, and the
// rounding of the weights is the only difference.

#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>

#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

// The `Factors` of a tile in which each element of b holds a pair of bfloat16 numbers, as in pairs.h, and a has two
// floats for it. The products are added one after the other, as they are with Values of the rounded weights, so that
// the bits of the sums are the same.
struct WidenedPairs {
  static constexpr int64_t kTerms = 2;
  static constexpr int64_t kWidth = 2;
  static constexpr int64_t kInPart = Values<float>::kInPart / kTerms;

  struct Two {
    Vec<float> first, second;
  };
  static FUSED_RNN_INLINE Two broadcast(const float* a) { return {Vec<float>(a[0]), Vec<float>(a[1])}; }
  static FUSED_RNN_INLINE Vec<float> add_product(const Two& a, Vec<float> b, Vec<float> sum) {
    const auto bits = at::vec::cast<int32_t>(b);
    const auto first = at::vec::cast<float>(bits << Vec<int32_t>(16));
    const auto second = at::vec::cast<float>(bits & Vec<int32_t>(-(1 << 16)));
    return at::vec::fmadd(a.second, second, at::vec::fmadd(a.first, first, sum));
  }
};

// Copies `count` values; a zero completes the last pair if `count` is odd.
inline void copy_to_pairs(const float* source, int64_t count, float* target) {
  std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
  if (count % 2 == 1) target[count] = 0.0f;
}

}  // namespace
}  // namespace fused_rnn::cpu
