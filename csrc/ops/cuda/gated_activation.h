// The gated activation on a GPU.

#pragma once

#include <ATen/core/Tensor.h>

namespace fused_rnn::ops {

// Returns tanh(a) * sigmoid(b) for the halves a and b of each group of channels of `input`, whose sizes have been
// checked, in the memory format of `input`.
at::Tensor gated_activation_on_cuda(const at::Tensor& input, int64_t data_channels);

// Returns the gradient of the input, given that of the output, in the memory format of `input`.
at::Tensor gated_activation_backward_on_cuda(const at::Tensor& grad_output, const at::Tensor& input,
                                             int64_t data_channels);

}  // namespace fused_rnn::ops
