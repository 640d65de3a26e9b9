// The gated activation: tanh(a) * sigmoid(b).

#pragma once

#include "cpu/kit/activation.h"
#include "cpu/kit/parallel.h"

namespace fused_rnn::cpu {
namespace {

// out[i] = tanh(a[i]) * sigmoid(b[i]). Each result depends on its own two numbers only, not on `count`.
template <typename T>
inline void gate_values(const T* a, const T* b, T* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const int64_t lanes = smaller(kLanes<T>, count - i);
    store(out + i, Activation::tanh(load(a + i, lanes)) * Activation::sigmoid(load(b + i, lanes)), lanes);
  }
}

// Writes the gradients of a and b for the gradient `grad` of tanh(a) * sigmoid(b).
template <typename T>
inline void gate_gradients(const T* grad, const T* a, const T* b, T* grad_a, T* grad_b, int64_t count) {
  const Vec<T> one(1);
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const int64_t lanes = smaller(kLanes<T>, count - i);
    const Vec<T> tanh = Activation::tanh(load(a + i, lanes)), sigmoid = Activation::sigmoid(load(b + i, lanes));
    const Vec<T> scaled = load(grad + i, lanes) * sigmoid;
    store(grad_a + i, scaled * (one - tanh * tanh), lanes);
    store(grad_b + i, scaled * tanh * (one - sigmoid), lanes);
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
