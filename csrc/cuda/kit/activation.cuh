// The functions of the cells on a GPU: for double as exact as CUDA has them, for float to about 1e-7.

#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/kit/platform.cuh"

namespace fused_rnn::cuda {

struct Activation {
  static FUSED_RNN_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
  static FUSED_RNN_DEVICE double tanh(double x) { return ::tanh(x); }
  static FUSED_RNN_DEVICE float sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp(-x)); }
  static FUSED_RNN_DEVICE float tanh(float x) {
    // The argument of exp is never positive, so nothing overflows. Near 0, where 1 - e loses digits, the Taylor series
    // up to x^5 is taken instead.
    const float e = fast_exp(-2.0f * ::fabsf(x)), square = x * x;
    const float near = x * (1.0f + square * (-1.0f / 3.0f + square * (2.0f / 15.0f)));
    const float far = ::copysignf((1.0f - e) * fast_reciprocal(1.0f + e), x);
    return square < 0.0025f ? near : far;
  }
  // NaN stays NaN.
  template <typename V>
  static FUSED_RNN_DEVICE V relu(V x) {
    return x <= V(0) ? V(0) : x;
  }
  // The gradient of relu, given its value: zero, not 0 * grad, where that is zero, so that an infinite gradient does
  // not become NaN. Where the value is NaN the gradient passes, as in PyTorch.
  template <typename V>
  static FUSED_RNN_DEVICE V relu_backward(V y, V grad) {
    return y <= V(0) ? V(0) : grad;
  }

 private:
#ifdef FUSED_RNN_CUDA_ON_HOST
  static float fast_exp(float x) { return ::expf(x); }
  static float fast_reciprocal(float x) { return 1.0f / x; }
#else
  static FUSED_RNN_DEVICE float fast_exp(float x) { return __expf(x); }
  static FUSED_RNN_DEVICE float fast_reciprocal(float x) { return __fdividef(1.0f, x); }
#endif
};

// The same with a tanh of fewer instructions, for results that are rounded to half precision: its absolute error is
// 1e-7, so near 0 its relative error is not small.
struct HalfActivation : Activation {
  static FUSED_RNN_DEVICE float tanh(float x) { return 2.0f * Activation::sigmoid(2.0f * x) - 1.0f; }
};

template <typename T>
using ActivationOf = std::conditional_t<sizeof(T) == 2, HalfActivation, Activation>;

}  // namespace fused_rnn::cuda
