// The kernel on the CPU of the gated activation, for each instruction set.

#pragma once

#include <cstdint>

#include "cpu/kit/per_capability.h"

namespace fused_rnn::cpu {

FUSED_RNN_PER_CAPABILITY(
    // out[i] = tanh(a[i]) * sigmoid(b[i]) for blocks of `count` contiguous numbers: block k of a and b begins at
    // input[2 k count] and input[(2 k + 1) count], that of out at output[k count].
    void gated_activation(const float* input, float* output, int64_t blocks, int64_t count, int64_t threads);
    void gated_activation(const double* input, double* output, int64_t blocks, int64_t count, int64_t threads);
    // The gradient of the input, given that of the output, which is laid out like it.
    void gated_activation_backward(const float* grad_output, const float* input, float* grad_input, int64_t blocks,
                                   int64_t count, int64_t threads);
    void gated_activation_backward(const double* grad_output, const double* input, double* grad_input, int64_t blocks,
                                   int64_t count, int64_t threads);)

}  // namespace fused_rnn::cpu
