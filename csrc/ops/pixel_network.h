// What the operators pixel_network and pixel_network_pack need of a device.

#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "params/pixel_network.h"

namespace fused_rnn::ops {

template <typename T>
struct PixelNetworkDevice {
  // Sets where the packed weights of each convolution begin, and returns how many values all take.
  int64_t (*place_weights)(std::vector<PixelConvolution<T>>& convolutions, int64_t groups);
  // Packs the weights, those of each convolution, into `packed`, of as many values.
  void (*pack_weights)(std::vector<PixelConvolution<T>>& convolutions, const std::vector<at::Tensor>& weights,
                       int64_t groups, const at::Tensor& packed);
  // Evaluates the network, whose values are on the device of `value`, and returns whether all that pixels were drawn
  // from is finite. params.threads and params.not_finite are set here.
  bool (*evaluate)(PixelNetworkParams<T> params, const at::Tensor& value);
};

// For float and double.
template <typename T>
PixelNetworkDevice<T> pixel_network_on_cpu();

}  // namespace fused_rnn::ops
