// The evaluation of networks pixel by pixel on a GPU.

#pragma once

#include "ops/pixel_network.h"

namespace fused_rnn::ops {

// For float and double.
template <typename T>
PixelNetworkDevice<T> pixel_network_on_cuda();

}  // namespace fused_rnn::ops
