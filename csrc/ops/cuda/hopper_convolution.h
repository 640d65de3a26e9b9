// Masked convolution by the kernels of our own for GPUs of compute capability 9.0.

#pragma once

#include "ops/masked_conv2d.h"

namespace fused_rnn::ops {

// Returns why these kernels do not serve a layer on a GPU; null if they do.
const char* why_not_hopper(const MaskedConv2dSizes& sizes, at::ScalarType type, c10::DeviceIndex gpu);

// Returns the output. `bias` is undefined if there is none.
Tensor hopper_forward(const MaskedConv2d& layer, const Tensor& bias);

Tensor hopper_input_gradient(const MaskedConv2d& layer, const Tensor& grad_output);

// Sets the gradient of the weight, and that of the bias if it is wanted.
void hopper_parameter_gradients(const MaskedConv2d& layer, const Tensor& grad_output, bool bias,
                                MaskedConv2dGradients& gradients);

}  // namespace fused_rnn::ops
