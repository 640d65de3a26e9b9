// Integers of 8 bits, four of them in the 32 bits of one float: the instruction vpdpbusd of AVX512_VNNI multiplies two
// vectors of fours and adds the four products to an integer of 32 bits, four times as many terms of a sum as with
// floats. Sums of integers are exact, so that every instruction set computes the same ones.
//
// A row of numbers x is quantised symmetrically: x is about scale * q, with q = round(x / scale) from -127 to 127 and
// scale = max |x| / 127. fused_rnn/reference/quantized.py defines the same in PyTorch.

#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

// The `Factors` of a tile that multiplies fours of bytes, unsigned ones in a, signed ones in b. The sums are integers
// in the bits of floats. With AVX-512 the processor must have AVX512_VNNI, too; one that has not runs the kernels for
// AVX2.
struct Bytes {
  static constexpr int64_t kTerms = 4;
  static constexpr int64_t kWidth = 1;
  // What is added to the numbers of a, since vpdpbusd takes unsigned ones; the kernels subtract it from the sums again.
  static constexpr int32_t kOffset = 128;
  // The most terms of a sum, which must not exceed 32 bits. There is only one part.
  static constexpr int64_t kMostTerms = 65536;
  static_assert(kMostTerms * (kOffset + 127) * 127 < (int64_t{1} << 31));
  static constexpr int64_t kInPart = kMostTerms;

  static FUSED_RNN_INLINE Vec<float> broadcast(const float* a) { return Vec<float>(*a); }

#if defined(CPU_CAPABILITY_AVX512)
  static FUSED_RNN_INLINE Vec<float> add_product(Vec<float> a, Vec<float> b, Vec<float> sum) {
    // Inline assembly for the reason that is given in pairs.h.
    __m512 result = sum;
    asm("vpdpbusd %2, %1, %0" : "+v"(result) : "v"(static_cast<__m512>(a)), "v"(static_cast<__m512>(b)));
    return result;
  }
#elif defined(CPU_CAPABILITY_AVX2)
  static FUSED_RNN_INLINE Vec<float> add_product(Vec<float> a, Vec<float> b, Vec<float> sum) {
    const __m256i x = _mm256_castps_si256(a), y = _mm256_castps_si256(b);
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(y, 8));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), _mm256_add_epi32(even, odd)));
  }
#else
  static FUSED_RNN_INLINE Vec<float> add_product(Vec<float> a, Vec<float> b, Vec<float> sum) {
    constexpr int64_t kCount = kLanes<float>;
    uint8_t x[kCount * 4];
    int8_t y[kCount * 4];
    int32_t total[kCount];
    std::memcpy(x, &a, sizeof x);
    std::memcpy(y, &b, sizeof y);
    std::memcpy(total, &sum, sizeof total);
    for (int64_t i = 0; i < kCount * 4; ++i) total[i / 4] += int32_t{x[i]} * int32_t{y[i]};
    std::memcpy(&sum, total, sizeof total);
    return sum;
  }
#endif
};

// What the sums of a tile of bytes are multiplied by, and what is subtracted from them before.
struct ByteScales {
  const float* weight;    // [gates, units]: the scale of each row of the weights
  const int32_t* offset;  // [gates, units]: kOffset times the sum of its numbers
  const float* row;       // the scales of the rows of a, row_stride apart
  int64_t row_stride;
};

// Returns the largest magnitude of `count` values; not a number if one of them is, and infinite if one of them is.
inline float largest_magnitude(const float* values, int64_t count) {
  Vec<float> largest(0.0f);
  int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>)
    largest = at::vec::maximum(largest, load(values + i).abs());  // keeps NaN
  if (i < count) largest = at::vec::maximum(largest, load(values + i, count - i).abs());
  float lanes[kLanes<float>], result = 0.0f;
  largest.store(lanes);
  for (const float lane : lanes)
    if (lane > result || std::isnan(lane)) result = lane;  // no later lane is larger than NaN
  return result;
}

// Quantises `count` values to bytes, to which `offset` is added, and returns their scale. Bytes up to a multiple of
// four are zero. A scale below the smallest normal number is 0, with numbers of 0; where a value is NaN or infinite,
// the scale is NaN.
inline float quantise(const float* source, int64_t count, int32_t offset, uint8_t* bytes) {
  constexpr float kMost = 127.0f;
  const float largest = largest_magnitude(source, count);
  const bool finite = largest <= std::numeric_limits<float>::max();
  // Below this, 127 / largest would be infinite.
  const bool zero = largest < kMost * std::numeric_limits<float>::min();
  const Vec<float> factor(finite && !zero ? kMost / largest : 0.0f);
  int64_t i = 0;
  for (; i < count; i += kLanes<float>) {
    const int64_t here = smaller(count - i, kLanes<float>);
    float rounded[kLanes<float>];
    (load(source + i, here) * factor).round().store(rounded);
    for (int64_t lane = 0; lane < here; ++lane)
      bytes[i + lane] = finite ? static_cast<uint8_t>(static_cast<int32_t>(rounded[lane]) + offset) : 0;
  }
  for (i = count; i % 4 != 0; ++i) bytes[i] = 0;
  return !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : largest / kMost;
}

}  // namespace
}  // namespace fused_rnn::cpu
