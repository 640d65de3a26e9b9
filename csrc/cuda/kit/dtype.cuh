// The types that the kernels compute with: how one is read and written, and its matrix instruction.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/kit/platform.cuh"

namespace fused_rnn::cuda {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

template <typename To, typename From>
FUSED_RNN_DEVICE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// What a value of type T is computed in.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

FUSED_RNN_DEVICE float widen(float value) { return value; }
FUSED_RNN_DEVICE double widen(double value) { return value; }
FUSED_RNN_DEVICE float widen(bfloat16 value) { return __bfloat162float(value); }
FUSED_RNN_DEVICE float widen(float16 value) { return __half2float(value); }

template <typename T>
FUSED_RNN_DEVICE T narrow(Accumulator<T> value) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (__is_same(T, bfloat16)) return __float2bfloat16(value);
    return T(value);
  } else {
    return value;
  }
}

// Two neighbouring values, as one word or two.
template <typename T>
using Pair = std::conditional_t<sizeof(T) == 2, uint32_t, uint2>;

// What nobody hands on: a word of ones.
constexpr uint32_t kMissing = 0xffffffffu;

template <typename T>
FUSED_RNN_DEVICE Pair<T> load_pair(const T* from) {
  return *reinterpret_cast<const Pair<T>*>(from);
}
template <typename T>
FUSED_RNN_DEVICE void store_pair(T* to, Pair<T> words) {
  *reinterpret_cast<Pair<T>*>(to) = words;
}

template <typename T>
FUSED_RNN_DEVICE void widen_pair(Pair<T> words, float (&values)[2]) {
  T pair[2];
  memcpy(pair, &words, sizeof(pair));
  values[0] = widen(pair[0]);
  values[1] = widen(pair[1]);
}
template <typename T>
FUSED_RNN_DEVICE Pair<T> narrow_pair(const float (&values)[2]) {
  const T pair[2] = {narrow<T>(values[0]), narrow<T>(values[1])};
  Pair<T> words;
  memcpy(&words, pair, sizeof(pair));
  return words;
}
// The same as other blocks may wait for it: a NaN of all ones becomes another NaN.
FUSED_RNN_DEVICE uint32_t handed_on(uint32_t words) { return words == kMissing ? 0x7fff7fffu : words; }
FUSED_RNN_DEVICE uint2 handed_on(uint2 words) {
  return {words.x == kMissing ? 0x7fffffffu : words.x, words.y == kMissing ? 0x7fffffffu : words.y};
}

// How 16 rows by 64 bytes of the weights meet 64 bytes of 8 sequences: two matrix instructions. Lane l holds 16 bytes,
// four words, of sequence l / 4, from byte 16 * (l % 4) on: words 0 and 1 for the first instruction, 2 and 3 for the
// second. The order of the sum is the same on both sides, so it need not be that of PTX.
template <typename T>
struct MmaTraits {
  static constexpr int kPerVector = 8;  // values in 16 bytes
  static FUSED_RNN_DEVICE void multiply(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1,
                                        bool /*allow_tf32*/) {
    if constexpr (__is_same(T, bfloat16))
      mma_bfloat16(sum, a, b0, b1);
    else
      mma_float16(sum, a, b0, b1);
  }
};

template <>
struct MmaTraits<float> {
  static constexpr int kPerVector = 4;
  // With tf32 one product; else three, which leave out only what float32 would round away: a = high + low, likewise b.
  static FUSED_RNN_DEVICE void multiply(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1, bool allow_tf32) {
    const uint4 high = {tf32(a.x), tf32(a.y), tf32(a.z), tf32(a.w)};
    const uint32_t high0 = tf32(b0), high1 = tf32(b1);
    if (allow_tf32) return mma_tf32(sum, high, high0, high1);
    const uint4 low = {rest(a.x, high.x), rest(a.y, high.y), rest(a.z, high.z), rest(a.w, high.w)};
    // Added up here: the matrix units round towards zero, which would add up too.
    float part[4] = {0, 0, 0, 0};
    mma_tf32(part, low, high0, high1);
    mma_tf32(part, high, rest(b0, high0), rest(b1, high1));
    mma_tf32(part, high, high0, high1);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += part[e];
  }

 private:
  static FUSED_RNN_DEVICE uint32_t tf32(uint32_t value) { return round_to_tf32(bits_as<float>(value)); }
  // What rounding left out; nothing of an infinity.
  static FUSED_RNN_DEVICE uint32_t rest(uint32_t value, uint32_t high) {
    const float all = bits_as<float>(value), rounded = bits_as<float>(high);
    return all == rounded ? 0 : round_to_tf32(all - rounded);
  }
};

}  // namespace fused_rnn::cuda
