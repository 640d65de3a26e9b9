// Masked convolution on a GPU.

#pragma once

#include "ops/masked_conv2d.h"

namespace fused_rnn::ops {

// Returns the output. `bias` is undefined if there is none.
Tensor masked_conv2d_on_cuda(const MaskedConv2d& layer, const Tensor& bias);

MaskedConv2dResults masked_conv2d_fused_on_cuda(const MaskedConv2d& layer, const Tensor& bias,
                                                const MaskedConv2dEpilogue& epilogue);

MaskedConv2dGradients masked_conv2d_backward_on_cuda(const MaskedConv2d& layer, const Tensor& grad_output,
                                                     MaskedConv2dWanted wanted);

}  // namespace fused_rnn::ops
