// sigmoid and tanh of vectors: in float32 to about 3e-7 of the value, several times faster than the library's.

#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <type_traits>

#include "cpu/tile.h"

namespace fused_rnn::cpu {
namespace {

// c[0] + c[1] x + c[2] x^2 + ... by Horner's rule.
template <int kCount>
FUSED_RNN_INLINE inline Vec<float> polynomial(Vec<float> x, const float (&c)[kCount]) {
  Vec<float> value(c[kCount - 1]);
  unroll<kCount - 1>([&](auto i) FUSED_RNN_INLINE { value = at::vec::fmadd(value, x, Vec<float>(c[kCount - 2 - i])); });
  return value;
}

// e^x: 2^n e^r with |r| <= ln(2)/2, e^r by a minimax polynomial (error 9e-8). Overflows to inf above 88.4, goes to 0
// (not through subnormal numbers) below -87; NaN stays NaN.
FUSED_RNN_INLINE inline Vec<float> exponential(Vec<float> x) {
  constexpr float kPolynomial[] = {1.0f, 0.9999997f, 0.49999151f, 0.16667636f, 0.04189793f, 0.008290314f};
  x = at::vec::clamp(x, Vec<float>(-88.0f), Vec<float>(89.0f));
  const Vec<float> n = (x * Vec<float>(1.44269504f)).round();
  // ln(2) in two parts, the first exact when multiplied by n even where there is no fused multiply-add.
  Vec<float> r = at::vec::fmadd(n, Vec<float>(-0.693359375f), x);
  r = at::vec::fmadd(n, Vec<float>(2.12194440e-4f), r);
  const auto exponent = at::vec::convert_to_int_of_same_size(n) + at::vec::Vectorized<int32_t>(127);
  const auto power = at::vec::cast<float>(exponent << at::vec::Vectorized<int32_t>(23));
  return polynomial(r, kPolynomial) * power;
}

// What the formulas in cells/ call: sigmoid and tanh.
struct Activation {
  template <typename T>
  static FUSED_RNN_INLINE Vec<T> sigmoid(Vec<T> x) {
    const Vec<T> one(T(1));
    if constexpr (std::is_same_v<T, float>)
      return one / (one + exponential(x.neg()));
    else
      return one / (one + x.neg().exp());
  }

  // x p(x^2) / q(x^2), minimax on [-8, 8], where tanh reaches 1 within float32's rounding; keeps its relative accuracy
  // down to zero, which 2 sigmoid(2x) - 1 does not.
  template <typename T>
  static FUSED_RNN_INLINE Vec<T> tanh(Vec<T> x) {
    if constexpr (std::is_same_v<T, float>) {
      constexpr float kP[] = {1.0f, 0.13444509f, 0.0035716108f, 2.1894877e-5f, 1.5230723e-8f};
      constexpr float kQ[] = {1.0f, 0.46777835f, 0.026164493f, 3.4113132e-4f, 8.5225696e-7f};
      x = at::vec::clamp(x, Vec<float>(-8.0f), Vec<float>(8.0f));
      const Vec<float> square = x * x;
      return x * polynomial(square, kP) / polynomial(square, kQ);
    } else {
      return x.tanh();
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
