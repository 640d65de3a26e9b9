// How the forward loop stores the values that a cell saves for the backward loop: as they are, or in bfloat16, which
// takes half the memory, in a layer that multiplies pairs of bfloat16.
//
// The derivatives of sigmoid and tanh are y (1 - y) and 1 - y^2. Of a y near 1 that is rounded to the 8 binary digits
// of bfloat16, the difference 1 - y would have few right digits left, or none. So where |y| > 1/2, the difference
// 1 - |y| is stored instead of y, multiplied by 2^100 to tell it from a y of at most 1/2, and with the sign of y. Then
// both y and that difference have 8 right digits.

#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <type_traits>

#include "cpu/kit/pairs.h"
#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

inline constexpr float kFarFromOne = 0.5f;  // the largest |y| that is stored as it is
inline constexpr float kShift = 0x1p100f;

// Returns the number that is stored for y, a value between -1 and 1, or NaN.
FUSED_RNN_INLINE inline Vec<float> encode_bounded(Vec<float> y) {
  const Vec<float> size = y.abs(), sign = y & Vec<float>(-0.0f);
  // What is less than any difference of two numbers near 1 stands for zero, so that the result is not taken for a y.
  const Vec<float> distance = at::vec::clamp_min(Vec<float>(1.0f) - size, Vec<float>(0x1p-60f));
  return Vec<float>::blendv(y, (distance * Vec<float>(kShift)) | sign, size > Vec<float>(kFarFromOne));
}

FUSED_RNN_INLINE inline Vec<float> decode_bounded(Vec<float> stored) {
  const Vec<float> size = stored.abs(), sign = stored & Vec<float>(-0.0f);
  const Vec<float> y = at::vec::fmadd(size, Vec<float>(-1.0f / kShift), Vec<float>(1.0f)) | sign;
  return Vec<float>::blendv(stored, y, size > Vec<float>(kFarFromOne));
}

// Stores the first `count` lanes of a saved value. kBounded says whether they lie between -1 and 1.
template <bool kBounded, typename T>
FUSED_RNN_INLINE inline void save(T* target, Vec<T> value, int64_t count) {
  store(target, value, count);
}
template <bool kBounded>
FUSED_RNN_INLINE inline void save(c10::BFloat16* target, Vec<float> value, int64_t count) {
  Pairs::store_terms(target, kBounded ? encode_bounded(value) : value, count);
}

// Loads what save() stored.
template <bool kBounded, typename T, typename Stored>
FUSED_RNN_INLINE inline Vec<T> load_saved(const Stored* source, int64_t count) {
  const Vec<T> stored = load_widened<T>(source, count);
  if constexpr (kBounded && !std::is_same_v<T, Stored>) return decode_bounded(stored);
  return stored;
}

}  // namespace
}  // namespace fused_rnn::cpu
