// The types of the layers' tensors: how one is read and written, and its matrix instruction.

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

// The type in which values of type T are computed and summed.
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

// The bits of two neighbouring values: one word for half precision, else two.
template <typename T>
using Pair = std::conditional_t<sizeof(T) == 2, uint32_t, uint2>;

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

// The matrix instruction of a type. 64 bytes of 16 rows of the weights times 64 bytes of 8 sequences take two of them.
// Of the sequences' values lane l holds 16 bytes, four words, of sequence l / 4, from byte 16 * (l % 4) on: words 0 and
// 1 are for the first instruction, words 2 and 3 for the second. PTX assigns other bytes of a row to a lane's words,
// but the weights are permuted in the same way (see store_weights), so only the order of summation changes.
template <typename T>
struct MmaTraits {
  static constexpr int kPerVector = 8;  // values in 16 bytes
  static FUSED_RNN_DEVICE void multiply(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1,
                                        bool /*full_precision*/) {
    if constexpr (__is_same(T, bfloat16))
      mma_bfloat16(sum, a, b0, b1);
    else
      mma_float16(sum, a, b0, b1);
  }
};

template <>
struct MmaTraits<float> {
  static constexpr int kPerVector = 4;
  // In tf32 there is one product. For full precision each factor is split into a high and a low part, and three
  // products leave out only low times low, which float32 would round away.
  static FUSED_RNN_DEVICE void multiply(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1,
                                        bool full_precision) {
    const uint4 high = {tf32(a.x), tf32(a.y), tf32(a.z), tf32(a.w)};
    const uint32_t high0 = tf32(b0), high1 = tf32(b1);
    if (!full_precision) return mma_tf32(sum, high, high0, high1);
    const uint4 low = {rest(a.x, high.x), rest(a.y, high.y), rest(a.z, high.z), rest(a.w, high.w)};
    // The matrix units round towards zero, and over a long sum that would add up; so each part starts from zero and is
    // added here, where sums are rounded to nearest.
    float part[4] = {0, 0, 0, 0};
    mma_tf32(part, low, finite(high0), finite(high1));
    mma_tf32(part, high, rest(b0, high0), rest(b1, high1));
    mma_tf32(part, high, high0, high1);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[e] += part[e];
  }

 private:
  static FUSED_RNN_DEVICE uint32_t tf32(uint32_t value) { return round_to_tf32(bits_as<float>(value)); }
  // Returns what rounding left out; zero for an infinity, for which the difference would be NaN.
  static FUSED_RNN_DEVICE uint32_t rest(uint32_t value, uint32_t high) {
    const float all = bits_as<float>(value), rounded = bits_as<float>(high);
    return all == rounded ? 0 : round_to_tf32(all - rounded);
  }
  // Returns zero for an infinity or NaN. Its product with the high part is all that counts: the product with a low part
  // is an infinity of either sign, and the sum of both could be NaN.
  static FUSED_RNN_DEVICE uint32_t finite(uint32_t high) {
    constexpr uint32_t kExponent = 0x7f800000u;
    return (high & kExponent) == kExponent ? 0 : high;
  }
};

}  // namespace fused_rnn::cuda
