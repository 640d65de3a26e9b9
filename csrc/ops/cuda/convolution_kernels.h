// Masked convolution by kernels of our own, in half precision, and in float32 where it may be rounded to tf32.

#pragma once

#include "cuda/conv/plan.h"
#include "ops/masked_conv2d.h"

namespace fused_rnn::ops {

// What may compute masked convolutions from now on, for tests and tuning: whatever is chosen, the kernels for single
// warps also where there are those for Hopper, or torch's convolutions alone.
enum class ConvolutionPath { kAny, kMma, kRectangles };
void set_convolution_path(ConvolutionPath path);

// Returns which kernels compute the passes over a layer on a GPU.
cuda::ConvolutionChoice choose_kernels(const MaskedConv2dSizes& sizes, at::ScalarType type, c10::DeviceIndex gpu);

// What follows is for passes for which kernels of our own are chosen.

// Returns the output, after the activation kNone or kReLU. `bias` is undefined if there is none.
Tensor kernels_forward(const MaskedConv2d& layer, const Tensor& bias, MaskedConv2dActivation activation,
                       cuda::Kernels kernels);

Tensor kernels_input_gradient(const MaskedConv2d& layer, const Tensor& grad_output, cuda::Kernels kernels);

// Sets the gradient of the weight, and that of the bias if it is wanted.
void kernels_parameter_gradients(const MaskedConv2d& layer, const Tensor& grad_output, bool bias, cuda::Kernels kernels,
                                 MaskedConv2dGradients& gradients);

}  // namespace fused_rnn::ops
