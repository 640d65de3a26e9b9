// The operators pixel_network and pixel_network_pack: they check their arguments and call the kernel.

#include "cpu/pixel_network.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "ops/dispatch.h"
#include "ops/mask_type.h"

namespace fused_rnn::ops {
namespace {

using at::Tensor;

// The numbers that describe a node in the operators' argument `nodes`; fused_rnn/ops/pixel_network.py writes them.
constexpr int64_t kNodeSize = 11;
struct EncodedNode {
  int64_t kind, whole_row, first_input, second_input, output;
  int64_t details[6];
};
static_assert(sizeof(EncodedNode) == kNodeSize * sizeof(int64_t));

const EncodedNode* decode(at::IntArrayRef nodes) { return reinterpret_cast<const EncodedNode*>(nodes.data()); }

// Returns a convolution's params. Its details are the positions of weight and bias (-1 for none) among the parameters,
// the mask type, the number of groups of channels, and the dilation.
template <typename T>
PixelConvolution<T> convolution(const EncodedNode& node, at::TensorList parameters, int64_t width) {
  const auto& [weight_at, bias_at, mask_type, data_channels, down, across] = node.details;
  const Tensor& weight = parameters[weight_at];
  TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous(), "weights must be contiguous and have four dimensions");
  PixelConvolution<T> result = {};
  result.sizes.width = width;
  result.sizes.in_channels = weight.size(1);
  result.sizes.out_channels = weight.size(0);
  result.sizes.kernel_height = weight.size(2);
  result.sizes.kernel_width = weight.size(3);
  result.sizes.dilation_height = down;
  result.sizes.dilation_width = std::min(across, std::max<int64_t>(width, 1));
  result.sizes.data_channels = data_channels;
  set_mask(result.sizes, kMaskTypes[mask_type]);
  result.weight = {weight.const_data_ptr<T>(), weight.stride(0), weight.stride(1), weight.stride(3)};
  result.bias = bias_at < 0 ? nullptr : parameters[bias_at].const_data_ptr<T>();
  return result;
}

template <typename T>
std::vector<PixelConvolution<T>> convolutions(at::IntArrayRef nodes, at::TensorList parameters, int64_t width) {
  std::vector<PixelConvolution<T>> result;
  for (size_t i = 0; i < nodes.size() / kNodeSize; ++i)
    if (static_cast<PixelNodeKind>(decode(nodes)[i].kind) == PixelNodeKind::kConvolution)
      result.push_back(convolution<T>(decode(nodes)[i], parameters, width));
  return result;
}

// Returns the nodes, in which convolutions are counted in their order.
std::vector<PixelNode> pixel_nodes(at::IntArrayRef nodes) {
  std::vector<PixelNode> result;
  int64_t count = 0;
  for (size_t i = 0; i < nodes.size() / kNodeSize; ++i) {
    const EncodedNode& node = decode(nodes)[i];
    const auto kind = static_cast<PixelNodeKind>(node.kind);
    const bool is_convolution = kind == PixelNodeKind::kConvolution;
    result.push_back({kind,
                      node.whole_row != 0,
                      {node.first_input, node.second_input},
                      node.output,
                      node.details[0],
                      node.details[1],
                      node.details[2],
                      is_convolution ? count : -1});
    count += is_convolution;
  }
  return result;
}

// Sets where each convolution's weights are packed, writes them to `packed` unless it is null, and returns their
// number.
template <typename T>
int64_t pack(std::vector<PixelConvolution<T>>& convolutions, int64_t groups, T* packed) {
  std::vector<int64_t> offsets(convolutions.size());
  const PixelNetworkPackParams<T> params = {groups, convolutions.data(), static_cast<int64_t>(convolutions.size()),
                                            packed, offsets.data()};
  const int64_t size = FUSED_RNN_CPU_CALL(pixel_network_pack, params);
  for (size_t i = 0; i < offsets.size(); ++i) convolutions[i].packed = offsets[i];
  return size;
}

// Calls body(T()) with the type of a tensor.
template <typename Body>
void for_type(const Tensor& tensor, const Body& body) {
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble,
                              "pixel_network: weights must be float32 or float64, got ", tensor.scalar_type());
  tensor.scalar_type() == at::kDouble ? body(double()) : body(float());
}

Tensor pixel_network_pack(at::TensorList parameters, at::IntArrayRef nodes, int64_t groups) {
  TORCH_CHECK(!parameters.empty() && nodes.size() % kNodeSize == 0, "pixel_network_pack: there is nothing to pack");
  Tensor packed;
  for_type(parameters[0], [&](auto zero) {
    using T = decltype(zero);
    auto all = convolutions<T>(nodes, parameters, 1);
    packed = at::empty({pack<T>(all, groups, nullptr)}, parameters[0].options());
    pack(all, groups, packed.mutable_data_ptr<T>());
  });
  return packed;
}

template <typename T>
PixelValue<T> pixel_value(const Tensor& tensor, int64_t batch, int64_t width) {
  TORCH_CHECK(tensor.dim() == 4 && tensor.is_contiguous() && tensor.size(0) == batch,
              "pixel_network: values must be contiguous, with the shape [batch, rows, columns, channels], got ",
              tensor.sizes());
  const bool broadcast = tensor.size(2) == 1;
  const int64_t margin = broadcast ? 0 : (tensor.size(2) - width) / 2;
  return {tensor.mutable_data_ptr<T>() + margin * tensor.size(3),
          tensor.size(3),
          tensor.size(1),
          tensor.stride(0),
          tensor.stride(1),
          broadcast ? 0 : tensor.size(3)};
}

void pixel_network(at::TensorList values, at::TensorList parameters, const Tensor& packed, at::IntArrayRef nodes,
                   int64_t groups, int64_t width, int64_t begin, int64_t end, const std::optional<Tensor>& image,
                   const std::optional<Tensor>& observed, const std::optional<Tensor>& uniforms,
                   const std::optional<Tensor>& scaled, const std::optional<Tensor>& outputs, int64_t distribution,
                   double factor, double offset, double temperature) {
  TORCH_CHECK(!values.empty() && nodes.size() % kNodeSize == 0 && !nodes.empty(), "pixel_network: it has no nodes");
  TORCH_CHECK(0 <= begin && begin <= end && width > 0 && groups > 0, "pixel_network: there are no steps from ", begin,
              " to ", end);
  const int64_t batch = values[0].size(0);
  if (batch == 0) return;
  int64_t not_finite = 0;
  for_type(values[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<PixelValue<T>> pixel_values;
    for (const Tensor& value : values) pixel_values.push_back(pixel_value<T>(value, batch, width));
    auto all = convolutions<T>(nodes, parameters, width);
    pack<T>(all, groups, nullptr);
    const std::vector<PixelNode> list = pixel_nodes(nodes);
    PixelNetworkParams<T> params = {};
    params.batch = batch;
    params.width = width;
    params.groups = groups;
    params.begin = begin;
    params.end = end;
    params.nodes = list.data();
    params.node_count = static_cast<int64_t>(list.size());
    params.values = pixel_values.data();
    params.convolutions = all.data();
    params.packed = packed.const_data_ptr<T>();
    params.threads = at::get_num_threads();
    params.not_finite = &not_finite;
    params.draw.distribution = static_cast<PixelDistribution>(distribution);
    if (image) {
      params.draw.channels = image->size(1);
      params.draw.height = image->size(2);
      params.draw.levels = scaled->size(0);
      params.draw.image = image->mutable_data_ptr<int64_t>();
      params.draw.observed = observed ? observed->const_data_ptr<bool>() : nullptr;
      params.draw.uniforms = uniforms->const_data_ptr<double>();
      params.draw.numbers = uniforms->size(4);
      params.draw.scaled = scaled->const_data_ptr<T>();
      params.draw.factor = factor;
      params.draw.offset = offset;
      params.draw.temperature = temperature;
    }
    if (outputs) {
      params.draw.height = outputs->size(2);
      params.draw.outputs = outputs->mutable_data_ptr<T>();
    }
    FUSED_RNN_CPU_CALL(pixel_network, params);
  });
  TORCH_CHECK_VALUE(not_finite == 0, "the network's output is NaN or infinite, so no pixel can be drawn from it");
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("pixel_network", pixel_network);
  library.impl("pixel_network_pack", pixel_network_pack);
}

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("pixel_network", torch::autograd::autogradNotImplementedFallback());
  library.impl("pixel_network_pack", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn::ops
