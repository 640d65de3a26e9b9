// The arguments of masked convolution, checked, on which the code of every device builds.

#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "params/masked_conv2d.h"

namespace fused_rnn::ops {

using at::Tensor;

struct MaskedConv2d {
  MaskedConv2dSizes sizes;
  Tensor input;             // [batch, in_channels, height, width]
  Tensor weight;            // [out_channels, in_channels, kernel_height, kernel_width]
  at::MemoryFormat format;  // of the output and of the input's gradient

  std::array<int64_t, 4> output_shape() const { return {sizes.batch, sizes.out_channels, sizes.height, sizes.width}; }
};

// Which gradients the backward pass must compute.
struct MaskedConv2dWanted {
  bool input, weight, bias;
};

// What the backward pass returns; gradients that are not wanted are of shape [0].
struct MaskedConv2dGradients {
  Tensor input, weight, bias;
};

}  // namespace fused_rnn::ops
