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

  // The shape of the output, which a gate makes of twice as many channels.
  std::array<int64_t, 4> output_shape(MaskedConv2dActivation activation = MaskedConv2dActivation::kNone) const {
    const int64_t halves = activation == MaskedConv2dActivation::kGated ? 2 : 1;
    return {sizes.batch, sizes.out_channels / halves, sizes.height, sizes.width};
  }
};

// What is done with the sums of a fused masked convolution.
struct MaskedConv2dEpilogue {
  MaskedConv2dActivation activation = MaskedConv2dActivation::kNone;
  Tensor residual = Tensor();  // of the output's shape, added to the activation; undefined if there is none
  bool keeps_sums = false;     // whether the sums before the activation are returned, too
};

// What a fused masked convolution returns; sums that are not kept are of shape [0].
struct MaskedConv2dResults {
  Tensor output, sums;
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
