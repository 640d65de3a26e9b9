// The types that the kernels compute with: how one is read and written, and its matrix instruction.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/platform.cuh"

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
struct StateOf {
  using Type = float;
};
template <>
struct StateOf<double> {
  using Type = double;
};
template <typename T>
using State = typename StateOf<T>::Type;

FUSED_RNN_DEVICE float widen(float value) { return value; }
FUSED_RNN_DEVICE double widen(double value) { return value; }
FUSED_RNN_DEVICE float widen(bfloat16 value) { return __bfloat162float(value); }
FUSED_RNN_DEVICE float widen(float16 value) { return __half2float(value); }

template <typename T>
FUSED_RNN_DEVICE T narrow(State<T> value) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (__is_same(T, bfloat16)) return __float2bfloat16(value);
    return T(value);
  } else {
    return value;
  }
}

// A tile of 16 values by 64 bytes of a sum: two matrix instructions deep. Lane l holds 16 bytes, four words, of the
// columns' row l / 4, from byte 16 * (l % 4) on: words 0 and 1 for the first instruction, 2 and 3 for the second. The
// order of the sum is the same on both sides, so it need not be that of PTX.
template <typename T>
struct Number {
  using Bits = uint16_t;
  static constexpr int kPerVector = 8;  // values in 16 bytes
  static FUSED_RNN_DEVICE void multiply(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1, bool) {
    if constexpr (__is_same(T, bfloat16))
      mma_bfloat16(sum, a, b0, b1);
    else
      mma_float16(sum, a, b0, b1);
  }
  // Whether no value of 16 bytes is still the NaN of all ones.
  static FUSED_RNN_DEVICE bool complete(const uint4& v) {
    const auto has_ones = [](uint32_t word) { return (~word - 0x00010001u) & word & 0x80008000u; };
    return (has_ones(v.x) | has_ones(v.y) | has_ones(v.z) | has_ones(v.w)) == 0;
  }
};

template <>
struct Number<float> {
  using Bits = uint32_t;
  static constexpr int kPerVector = 4;
  // With tf32 one product; else three, which leave out only what float32 would round away: a = high + low, likewise b.
  static FUSED_RNN_DEVICE void multiply(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1, bool exact) {
    const uint4 high = {tf32(a.x), tf32(a.y), tf32(a.z), tf32(a.w)};
    const uint32_t high0 = tf32(b0), high1 = tf32(b1);
    if (exact) {
      const uint4 low = {rest(a.x, high.x), rest(a.y, high.y), rest(a.z, high.z), rest(a.w, high.w)};
      mma_tf32(sum, low, high0, high1);
      mma_tf32(sum, high, rest(b0, high0), rest(b1, high1));
    }
    mma_tf32(sum, high, high0, high1);
  }
  static FUSED_RNN_DEVICE bool complete(const uint4& v) {
    return v.x != 0xffffffffu && v.y != 0xffffffffu && v.z != 0xffffffffu && v.w != 0xffffffffu;
  }

 private:
  static FUSED_RNN_DEVICE uint32_t tf32(uint32_t value) { return round_to_tf32(bits_as<float>(value)); }
  static FUSED_RNN_DEVICE uint32_t rest(uint32_t value, uint32_t high) {
    return round_to_tf32(bits_as<float>(value) - bits_as<float>(high));
  }
};

// Writes a value for other blocks, never as the NaN of all ones, which would mean that it is still missing.
template <typename T>
FUSED_RNN_DEVICE void publish(T* to, State<T> value) {
  using Bits = typename Number<T>::Bits;
  const auto bits = bits_as<Bits>(narrow<T>(value));
  store_fresh(reinterpret_cast<Bits*>(to), bits == Bits(~Bits(0)) ? Bits(bits >> 1) : bits);
}

}  // namespace fused_rnn::cuda
