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

}  // namespace
}  // namespace fused_rnn::cpu
