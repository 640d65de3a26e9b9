// Sigmoid and tanh on a GPU: for double as exact as CUDA has them, for float to about 1e-7.

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
    // exp of what is not positive: no overflow. Near 0, where 1 - e loses digits, the series up to x^5.
    const float e = fast_exp(-2.0f * ::fabsf(x)), square = x * x;
    const float near = x * (1.0f + square * (-1.0f / 3.0f + square * (2.0f / 15.0f)));
    const float far = ::copysignf((1.0f - e) * fast_reciprocal(1.0f + e), x);
    return square < 0.0025f ? near : far;
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

// The same in fewer instructions, where the result is rounded to half precision: near 0 an error of 1e-7, not relative.
struct HalfActivation {
  static FUSED_RNN_DEVICE float sigmoid(float x) { return Activation::sigmoid(x); }
  static FUSED_RNN_DEVICE float tanh(float x) { return 2.0f * Activation::sigmoid(2.0f * x) - 1.0f; }
};

template <typename T>
using ActivationOf = std::conditional_t<sizeof(T) == 2, HalfActivation, Activation>;

}  // namespace fused_rnn::cuda
