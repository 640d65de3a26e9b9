// Activation functions of vectors. In float32, sigmoid and tanh are accurate to about 1.5 units in the last place and
// several times faster than the library's.

#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <type_traits>

#include "cpu/kit/tile.h"

namespace fused_rnn::cpu {
namespace {

// c[0] + c[1] x + c[2] x^2 + ... by Horner's rule.
template <int kCount>
FUSED_RNN_INLINE inline Vec<float> polynomial(Vec<float> x, const float (&c)[kCount]) {
  Vec<float> value(c[kCount - 1]);
  unroll<kCount - 1>([&](auto i) FUSED_RNN_INLINE { value = at::vec::fmadd(value, x, Vec<float>(c[kCount - 2 - i])); });
  return value;
}

// e^x as power * (1 + rest), so that e^x - 1 can be computed without cancellation for x near zero.
struct Exponential {
  Vec<float> power, rest;
};

// e^x for x of at least -87: 2^n e^r with |r| <= ln(2)/2, e^r by a minimax polynomial (error 2e-9). NaN stays NaN. From
// 88.4 on n is 127 and r grows, so that the rest becomes so large that e^x overflows to infinity where it should; below
// that, up to 88.7, the error is at most 6e-6.
FUSED_RNN_INLINE inline Exponential exponential(Vec<float> x) {
  constexpr float kPolynomial[] = {0.49999994f, 0.16666432f, 0.041668002f, 0.0083741555f, 0.0013843654f};
  // 1.5 * 2^23: the sum of this and a small number has the nearest integer of that number in its lowest mantissa bits.
  const Vec<float> magic(12582912.0f);
  const Vec<float> shifted =
      at::vec::clamp_max(at::vec::fmadd(x, Vec<float>(1.44269504f), magic), magic + Vec<float>(127.0f));
  const Vec<float> n = shifted - magic;
  // ln(2) is subtracted in two parts (Cody and Waite): n times the first is exact even without fused multiply-add.
  Vec<float> r = at::vec::fmadd(n, Vec<float>(-0.693359375f), x);
  r = at::vec::fmadd(n, Vec<float>(2.12194440e-4f), r);
  const auto one = at::vec::Vectorized<int32_t>(0x3f800000);  // 1.0f, as bits
  const auto exponent = at::vec::cast<int32_t>(shifted) << at::vec::Vectorized<int32_t>(23);
  return {at::vec::cast<float>(exponent + one), at::vec::fmadd(r * r, polynomial(r, kPolynomial), r)};
}

// The `Math` argument of the formulas in cells/; see cells/cells.h.
struct Activation {
  template <typename T>
  static FUSED_RNN_INLINE Vec<T> sigmoid(Vec<T> x) {
    const Vec<T> one(T(1));
    if constexpr (std::is_same_v<T, float>) {
      const auto e = exponential(at::vec::clamp_min(x.neg(), Vec<float>(-87.0f)));
      return one / at::vec::fmadd(e.power, e.rest, e.power + one);
    } else {
      return one / (one + x.neg().exp());
    }
  }

  // (e^2x - 1) / (e^2x + 1), with x clamped to a range beyond which the result rounds to 1 or -1.
  template <typename T>
  static FUSED_RNN_INLINE Vec<T> tanh(Vec<T> x) {
    if constexpr (std::is_same_v<T, float>) {
      const auto e = exponential(at::vec::clamp(x + x, Vec<float>(-20.0f), Vec<float>(20.0f)));
      const Vec<float> expm1 = at::vec::fmadd(e.power, e.rest, e.power - Vec<float>(1.0f));
      return expm1 / (expm1 + Vec<float>(2.0f));
    } else {
      return x.tanh();
    }
  }

  // NaN stays NaN.
  template <typename T>
  static FUSED_RNN_INLINE Vec<T> relu(Vec<T> x) {
    return at::vec::maximum(x, Vec<T>(T(0)));
  }

  // Selects instead of multiplying by zero, since an infinite gradient times zero would be NaN.
  template <typename T>
  static FUSED_RNN_INLINE Vec<T> relu_backward(Vec<T> y, Vec<T> grad) {
    return Vec<T>::blendv(grad, Vec<T>(T(0)), y <= Vec<T>(T(0)));
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
