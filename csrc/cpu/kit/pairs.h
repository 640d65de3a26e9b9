// Pairs of bfloat16 numbers, each in the place of one float: an instruction multiplies them two by two and adds both
// products to a float, twice as many terms of a sum as with floats.

#pragma once

#include <ATen/cpu/vec/functional_base.h>
#include <ATen/cpu/vec/functional_bfloat16.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>

#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

// To be multiplied by a tile in place of Values<float>.
struct Pairs {
  static constexpr int64_t kTerms = 2;

#if defined(CPU_CAPABILITY_AVX512)
  static constexpr bool kBuilt = true;
  // In assembler, so that no other code of this instruction set may be compiled to need AVX512_BF16.
  static FUSED_RNN_INLINE Vec<float> add_product(Vec<float> a, Vec<float> b, Vec<float> sum) {
    __m512 result = sum;
    asm("vdpbf16ps %2, %1, %0" : "+v"(result) : "v"(static_cast<__m512>(a)), "v"(static_cast<__m512>(b)));
    return result;
  }
#else
#if defined(FUSED_RNN_PAIRS_STAND_IN)
  static constexpr bool kBuilt = true;
#else
  static constexpr bool kBuilt = false;
#endif
  // The same sum, but for subnormal numbers, which the instruction takes for zero: so tests run without it.
  static FUSED_RNN_INLINE Vec<float> add_product(Vec<float> a, Vec<float> b, Vec<float> sum) {
    const auto first = [](Vec<float> pairs) {
      return at::vec::cast<float>(at::vec::cast<int32_t>(pairs) << Vec<int32_t>(16));
    };
    const auto second = [](Vec<float> pairs) {
      return at::vec::cast<float>(at::vec::cast<int32_t>(pairs) & Vec<int32_t>(-(1 << 16)));
    };
    return at::vec::fmadd(first(a), first(b), at::vec::fmadd(second(a), second(b), sum));
  }
#endif
};

// Rounds `count` values to pairs, the last one with zero if they are odd.
inline void round_to_pairs(const float* source, int64_t count, float* pairs) {
  constexpr int64_t kValues = 2 * kLanes<float>;
  for (int64_t i = 0; i < count; i += kValues) {
    const int64_t here = smaller(count - i, kValues), first = smaller(here, kLanes<float>);
    at::vec::convert_float_bfloat16(load(source + i, first), load(source + i + first, here - first))
        .store(pairs + i / 2, here + here % 2);
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
