// sigmoid and tanh of vectors: in float32 to about one and a half units in the last place, several times faster than
// the library's.

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

// e^x for x in [-88, 89]: 2^n e^r with |r| <= ln(2)/2, e^r by a minimax polynomial (error 2e-9). Overflows to inf from
// 88.4 on and goes to 0, not through subnormal numbers, below -87; NaN stays NaN.
FUSED_RNN_INLINE inline Vec<float> exponential(Vec<float> x) {
  constexpr float kPolynomial[] = {1.0f, 1.0f, 0.49999994f, 0.16666432f, 0.041668002f, 0.0083741555f, 0.0013843654f};
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
      return one / (one + exponential(at::vec::clamp(x.neg(), Vec<float>(-88.0f), Vec<float>(89.0f))));
    else
      return one / (one + x.neg().exp());
  }

  // (e^2x - 1) / (e^2x + 1), clamped where it has become 1; near zero, where that would cancel, x + x^3 p(x^2) with a
  // minimax polynomial p (error 4e-9).
  template <typename T>
  static FUSED_RNN_INLINE Vec<T> tanh(Vec<T> x) {
    if constexpr (std::is_same_v<T, float>) {
      constexpr float kPolynomial[] = {-0.33333281f, 0.13331442f, -0.053739715f, 0.020639086f, -0.005704986f};
      const Vec<float> one(1.0f), square = x * x;
      const Vec<float> small = at::vec::fmadd(x * square, polynomial(square, kPolynomial), x);
      const Vec<float> e = exponential(at::vec::clamp(x + x, Vec<float>(-20.0f), Vec<float>(20.0f)));
      return Vec<float>::blendv((e - one) / (e + one), small, square < Vec<float>(0.390625f));
    } else {
      return x.tanh();
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
