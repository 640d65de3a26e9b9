// The kernels of masked convolution on the CPU, for each instruction set. params/masked_conv2d.h says which arrays they
// read and write. Masked taps and taps outside the image are never multiplied, so that a NaN at a pixel cannot reach
// the pixels before it. Every sum is computed in the same order for any number of threads.

#pragma once

#include "cpu/kit/per_capability.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cpu {

FUSED_RNN_PER_CAPABILITY(
    // sums[p] = bias + sum over active taps of weight[tap] input[p + tap]; output[p] = activation(sums[p]) +
    // residual[p].
    void masked_conv2d(const MaskedConv2dForwardParams<float>& params);
    void masked_conv2d(const MaskedConv2dForwardParams<double>& params);
    // grad_input[q] = sum over active taps of weight[tap]^T grad_output[q - tap].
    void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<float>& params);
    void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<double>& params);
    // grad_weight[tap] = sum over pixels of grad_output[p] input[p + tap]^T; grad_bias = sum of grad_output[p].
    void masked_conv2d_parameter_gradients(const MaskedConv2dParameterGradientsParams<float>& params);
    void masked_conv2d_parameter_gradients(const MaskedConv2dParameterGradientsParams<double>& params);)

}  // namespace fused_rnn::cpu
