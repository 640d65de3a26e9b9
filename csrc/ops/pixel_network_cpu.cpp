// The evaluation of networks pixel by pixel on the CPU.

#include "cpu/pixel_network.h"
#include "ops/dispatch.h"
#include "ops/pixel_network.h"
#include "ops/threads.h"

namespace fused_rnn::ops {
namespace {

// Sets where the weights are packed, writes them to `packed` unless it is null, and returns their number.
template <typename T>
int64_t pack(std::vector<PixelConvolution<T>>& convolutions, int64_t groups, T* packed) {
  std::vector<int64_t> offsets(convolutions.size());
  const PixelNetworkPackParams<T> params = {groups, convolutions.data(), static_cast<int64_t>(convolutions.size()),
                                            packed, offsets.data()};
  const int64_t size = FUSED_RNN_CPU_CALL(pixel_network_pack, params);
  for (size_t i = 0; i < offsets.size(); ++i) convolutions[i].packed = offsets[i];
  return size;
}

template <typename T>
int64_t place_weights(std::vector<PixelConvolution<T>>& convolutions, int64_t groups) {
  return pack<T>(convolutions, groups, nullptr);
}

template <typename T>
void pack_weights(std::vector<PixelConvolution<T>>& convolutions, const std::vector<at::Tensor>& /*weights*/,
                  int64_t groups, const at::Tensor& packed) {
  pack(convolutions, groups, packed.mutable_data_ptr<T>());
}

template <typename T>
bool evaluate(PixelNetworkParams<T> params, const at::Tensor& /*value*/) {
  int64_t not_finite = 0;
  params.threads = most_threads();
  params.not_finite = &not_finite;
  FUSED_RNN_CPU_CALL(pixel_network, params);
  return not_finite == 0;
}

}  // namespace

template <typename T>
PixelNetworkDevice<T> pixel_network_on_cpu() {
  return {place_weights<T>, pack_weights<T>, evaluate<T>};
}
template PixelNetworkDevice<float> pixel_network_on_cpu();
template PixelNetworkDevice<double> pixel_network_on_cpu();

}  // namespace fused_rnn::ops
