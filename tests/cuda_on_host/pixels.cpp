// The evaluation of networks pixel by pixel by the kernel of csrc/cuda/pixelwise/, for the tests to call through
// ctypes.

#include <vector>

#include "cuda/pixel_network.h"

namespace fused_rnn::cuda {
namespace {

template <typename T>
const char* evaluate(const void* params, int multiprocessors) {
  const auto& p = *static_cast<const PixelNetworkParams<T>*>(params);
  std::vector<PixelTask<T>> tasks(static_cast<size_t>(p.node_count));
  make_tasks(p, tasks.data());
  return pixel_network(p, tasks.data(), {multiprocessors, 227 * 1024, {}, 0, false}, nullptr);
}

}  // namespace

extern "C" {

// Returns null, or what is wrong.
const char* evaluate_pixel_network(bool is_double, const void* params, int multiprocessors) {
  return is_double ? evaluate<double>(params, multiprocessors) : evaluate<float>(params, multiprocessors);
}

// For Python to check that its structs are laid out like these.
void pixel_struct_sizes(int64_t (&sizes)[6]) {
  sizes[0] = sizeof(PixelNode), sizes[1] = sizeof(PixelValue<float>), sizes[2] = sizeof(MaskedConv2dSizes);
  sizes[3] = sizeof(PixelConvolution<float>), sizes[4] = sizeof(PixelDraw<float>);
  sizes[5] = sizeof(PixelNetworkParams<float>);
}

int64_t most_pixel_nodes(int64_t element_bytes, int64_t shared_bytes) {
  return most_nodes(element_bytes, {132, shared_bytes, {}, 0, false});
}

}  // extern "C"

}  // namespace fused_rnn::cuda
