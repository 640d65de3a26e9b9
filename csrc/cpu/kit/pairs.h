// Pairs of bfloat16 numbers, each pair in the 32 bits of one float: the instruction vdpbf16ps multiplies two vectors of
// pairs and adds both products of each pair to a float, twice as many terms of a sum as with floats.

#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>

#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

// The `Factors` of a tile that multiplies pairs instead of Values<float>.
struct Pairs {
  using Stored = c10::BFloat16;
  static constexpr int64_t kTerms = 2;
  static constexpr int64_t kWidth = 1;
  static constexpr int64_t kInPart = 512;
  static FUSED_RNN_INLINE Vec<float> broadcast(const float* a) { return Vec<float>(*a); }

#if defined(CPU_CAPABILITY_AVX512)
  static constexpr bool kBuilt = true;  // whether kernels that multiply pairs are compiled at all
  // Inline assembly rather than -mavx512bf16, with which the compiler could use AVX512_BF16 elsewhere in this file,
  // too, which processors with AVX-512 alone do not have.
  static FUSED_RNN_INLINE Vec<float> add_product(Vec<float> a, Vec<float> b, Vec<float> sum) {
    __m512 result = sum;
    asm("vdpbf16ps %2, %1, %0" : "+v"(result) : "v"(static_cast<__m512>(a)), "v"(static_cast<__m512>(b)));
    return result;
  }
  // Rounds the first `count` lanes and stores them.
  static FUSED_RNN_INLINE void store_terms(c10::BFloat16* target, Vec<float> terms, int64_t count) {
    __m256i rounded;
    asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(static_cast<__m512>(terms)));
    if (count == kLanes<float>)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), rounded);
    else
      _mm256_mask_storeu_epi16(target, static_cast<__mmask16>((1 << count) - 1), rounded);
  }
#else
#if defined(FUSED_RNN_PAIRS_STAND_IN)
  static constexpr bool kBuilt = true;
#else
  static constexpr bool kBuilt = false;
#endif
  // The same sum without the instruction, so that tests run on any processor. It differs only for subnormal numbers,
  // which the instruction treats as zero.
  static FUSED_RNN_INLINE Vec<float> add_product(Vec<float> a, Vec<float> b, Vec<float> sum) {
    const auto first = [](Vec<float> pairs) {
      return at::vec::cast<float>(at::vec::cast<int32_t>(pairs) << Vec<int32_t>(16));
    };
    const auto second = [](Vec<float> pairs) {
      return at::vec::cast<float>(at::vec::cast<int32_t>(pairs) & Vec<int32_t>(-(1 << 16)));
    };
    return at::vec::fmadd(first(a), first(b), at::vec::fmadd(second(a), second(b), sum));
  }
  static FUSED_RNN_INLINE void store_terms(c10::BFloat16* target, Vec<float> terms, int64_t count) {
    at::vec::convert_float_bfloat16(terms, Vec<float>(0.0f)).store(target, count);
  }
#endif
  static FUSED_RNN_INLINE Vec<float> add_terms(Vec<float> elements, Vec<float> sum) {
    const Vec<int32_t> ones(0x3f803f80);  // one and one
    return add_product(elements, at::vec::cast<float>(ones), sum);
  }
};

// Makes pairs of the values of two arrays: pairs[i] = (first[i], second[i]).
inline void join_pairs(const c10::BFloat16* __restrict first, const c10::BFloat16* __restrict second, int64_t count,
                       float* __restrict pairs) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t pair = first[i].x | static_cast<uint32_t>(second[i].x) << 16;
    std::memcpy(pairs + i, &pair, sizeof pair);
  }
}

// Copies `count` values as pairs; zero completes the last pair if `count` is odd.
inline void copy_pairs(const c10::BFloat16* source, int64_t count, float* pairs) {
  if (count % 2 == 1) pairs[count / 2] = 0.0f;
  std::memcpy(pairs, source, static_cast<size_t>(count) * sizeof(*source));
}

// Rounds `count` values to bfloat16 and stores them as pairs; zero completes the last pair if `count` is odd.
inline void round_to_pairs(const float* source, int64_t count, float* pairs) {
  auto* target = reinterpret_cast<c10::BFloat16*>(pairs);
  for (int64_t i = 0; i < count; i += kLanes<float>) {
    const int64_t here = smaller(count - i, kLanes<float>);
    Pairs::store_terms(target + i, load(source + i, here), here + here % 2);
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
