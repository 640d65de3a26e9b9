// The gradients of a layer's input and weights: products over all steps, whichever path the steps took.

#pragma once

#include <array>

#include "ops/cuda/layer.h"

namespace fused_rnn::ops {

// Returns for each direction the hidden values before each row, [rows, output_size]; zero where a sequence has no step.
std::array<Tensor, 2> hidden_before(const CudaLayer& cuda, const Tensor& output);

// Returns the gradient of the layer's input.
Tensor input_gradient(const CudaLayer& cuda, const StepGradients& steps);

// Returns the gradients of the weights of both directions. `before` is what hidden_before() returns.
std::array<DirectionWeights, 2> weight_gradients(const CudaLayer& cuda, const RecurrentSaved& saved,
                                                 const StepGradients& steps, const std::array<Tensor, 2>& before);

}  // namespace fused_rnn::ops
