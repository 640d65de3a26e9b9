// The stepwise path, for layers of any size and type: one product and one pointwise kernel for each step.

#pragma once

#include "ops/cuda/layer.h"

namespace fused_rnn::ops {

// Runs all steps. On entry outputs.gates hold the input's part of the gates' sums; on return the rest is written.
void stepwise_forward(const CudaLayer& cuda, RecurrentOutputs& outputs, bool save_for_backward);

// Runs all steps backwards. All of `steps` that is defined is written.
void stepwise_backward(const CudaLayer& cuda, const RecurrentGradients& gradients, const RecurrentSaved& saved,
                       StepGradients& steps);

// Computes once more, all steps at a time, the gates of a direction that forward saves for backward. On entry `gates`,
// [rows, sums * hidden_size], holds the input's part of their sums. `before` is what hidden_before() returns for it.
void recompute_gates(const CudaLayer& cuda, const Tensor& before, int64_t direction, const Tensor& gates);

}  // namespace fused_rnn::ops
