#include "ops/cuda/pixel_network.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <limits>

#include "cuda/pixel_network.h"
#include "ops/cuda/layer.h"
#include "ops/cuda/torch_cuda.h"

namespace fused_rnn::ops {
namespace {

template <typename T>
int64_t place_weights(std::vector<PixelConvolution<T>>& convolutions, int64_t groups) {
  int64_t size = 0;
  for (PixelConvolution<T>& convolution : convolutions) {
    convolution.packed = size;
    size += cuda::PixelPacking(convolution.sizes, groups, sizeof(T)).size(convolution.sizes.in_channels);
  }
  return size;
}

template <typename T>
void pack_weights(std::vector<PixelConvolution<T>>& convolutions, const std::vector<Tensor>& weights, int64_t groups,
                  const Tensor& packed) {
  packed.zero_();
  for (size_t i = 0; i < weights.size(); ++i) {
    const MaskedConv2dSizes& s = convolutions[i].sizes;
    const cuda::PixelPacking packing(s, groups, sizeof(T));
    const Tensor active = weights[i].flatten(2).narrow(2, 0, packing.taps).permute({2, 1, 0});
    const Tensor target = packed.narrow(0, convolutions[i].packed, packing.size(s.in_channels))
                              .view({packing.taps, s.in_channels, packing.groups, packing.width});
    for (int64_t group = 0; group < packing.groups; ++group) {
      const int64_t first = first_of_group(group, packing.groups, s.out_channels);
      const int64_t count = first_of_group(group + 1, packing.groups, s.out_channels) - first;
      target.select(2, group).narrow(2, 0, count).copy_(active.narrow(2, first, count));
    }
  }
}

// The kernel counts with 32 bits within the images of a block.
template <typename T>
void check_sizes(const PixelNetworkParams<T>& params, const cuda::Device& gpu) {
  const int64_t most = cuda::most_nodes(sizeof(T), gpu);
  TORCH_CHECK_NOT_IMPLEMENTED(params.node_count <= most, "on this GPU a network may have ", most,
                              " operations to be evaluated pixel by pixel, but it has ", params.node_count);
  const auto fits = [](int64_t count) { return count <= std::numeric_limits<int32_t>::max() / cuda::kMostBlockImages; };
  bool all_fit = fits(params.batch) && fits(params.width * params.groups);
  for (int64_t i = 0; i < params.node_count; ++i) {
    const PixelNode& node = params.nodes[i];
    for (const int64_t value : {node.inputs[0], node.inputs[1], node.output})
      all_fit = all_fit && fits(params.values[value].image_stride);
  }
  TORCH_CHECK_NOT_IMPLEMENTED(all_fit, "the images are too large to be evaluated pixel by pixel on a GPU");
}

template <typename T>
bool evaluate(PixelNetworkParams<T> params, const Tensor& value) {
  const c10::DeviceGuard guard(value.device());
  void* const stream = current_stream(value.device());
  // A replay would copy the tasks again from memory that has another use by then.
  TORCH_CHECK(!cuda::is_capturing(stream), "pixels cannot be evaluated while a CUDA graph is captured");
  TORCH_CHECK(reinterpret_cast<uintptr_t>(params.packed) % 16 == 0,
              "packed must begin at a multiple of 16 bytes, as what pixel_network_pack returns does");
  const cuda::Device gpu = cuda::device_at(std::max<int>(0, value.device().index()));
  check_sizes(params, gpu);
  const auto bytes = params.node_count * static_cast<int64_t>(sizeof(cuda::PixelTask<T>));
  const auto options = value.options().dtype(at::kByte);
  const Tensor on_host = at::empty({bytes}, options.device(at::kCPU).pinned_memory(value.is_cuda()));
  cuda::make_tasks(params, static_cast<cuda::PixelTask<T>*>(on_host.mutable_data_ptr()));
  const Tensor tasks = on_host.to(value.device(), /*non_blocking=*/true);
  const Tensor not_finite = at::zeros({1}, options.dtype(at::kLong));
  params.not_finite = not_finite.mutable_data_ptr<int64_t>();
  check_launch(
      cuda::pixel_network(params, static_cast<const cuda::PixelTask<T>*>(tasks.const_data_ptr()), gpu, stream));
  // Whoever only wants the outputs need not wait for the GPU.
  return params.draw.distribution == PixelDistribution::kNone || not_finite.item<int64_t>() == 0;
}

}  // namespace

template <typename T>
PixelNetworkDevice<T> pixel_network_on_cuda() {
  return {place_weights<T>, pack_weights<T>, evaluate<T>};
}
template PixelNetworkDevice<float> pixel_network_on_cuda();
template PixelNetworkDevice<double> pixel_network_on_cuda();

}  // namespace fused_rnn::ops
