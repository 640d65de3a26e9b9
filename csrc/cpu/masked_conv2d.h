// The kernels of masked convolution, once for each instruction set. Params say what is read and written.
// A masked tap is never multiplied, nor is one outside the image, so that NaN at a pixel stays out of all earlier ones.
// Every sum has one fixed order, whatever the number of threads.

#pragma once

#include "cpu/kit/per_capability.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cpu {

FUSED_RNN_PER_CAPABILITY(
    // output[p] = bias + sum over active taps of weight[tap] input[p + tap].
    void masked_conv2d(const MaskedConv2dForwardParams<float>& params);
    void masked_conv2d(const MaskedConv2dForwardParams<double>& params);
    // grad_input[q] = sum over active taps of weight[tap]^T grad_output[q - tap].
    void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<float>& params);
    void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<double>& params);
    // grad_weight[tap] = sum over pixels of grad_output[p] input[p + tap]^T; grad_bias = sum of grad_output[p].
    void masked_conv2d_parameter_gradients(const MaskedConv2dParameterGradientsParams<float>& params);
    void masked_conv2d_parameter_gradients(const MaskedConv2dParameterGradientsParams<double>& params);)

}  // namespace fused_rnn::cpu
