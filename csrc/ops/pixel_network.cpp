// The operators pixel_network and pixel_network_pack: they check their arguments and call the kernel.

#include "ops/pixel_network.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>
#include <vector>

#include "distributions/logistic_mixture.h"
#include "ops/mask_type.h"
#ifdef FUSED_RNN_CUDA
#include "ops/cuda/pixel_network.h"
#endif

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

// Checks that the nodes name only values and parameters that exist, and that these have the same type.
void check_nodes(at::IntArrayRef nodes, int64_t values, at::TensorList parameters, int64_t groups) {
  TORCH_CHECK(!nodes.empty() && nodes.size() % kNodeSize == 0, "nodes must be ", kNodeSize, " numbers each, got ",
              nodes.size(), " numbers");
  TORCH_CHECK(groups > 0, "groups must be positive, got ", groups);
  const auto exists = [](int64_t at, int64_t count) { return 0 <= at && at < count; };
  const auto count = static_cast<int64_t>(parameters.size());
  for (const Tensor& parameter : parameters)
    TORCH_CHECK(parameter.scalar_type() == parameters[0].scalar_type() && parameter.is_contiguous() &&
                    parameter.device() == parameters[0].device(),
                "parameters must be contiguous, have the same dtype and be on the same device");
  for (size_t i = 0; i < nodes.size() / kNodeSize; ++i) {
    const EncodedNode& node = decode(nodes)[i];
    TORCH_CHECK(exists(node.kind, static_cast<int64_t>(PixelNodeKind::kCopy) + 1) && exists(node.first_input, values) &&
                    exists(node.second_input, values) && exists(node.output, values),
                "node ", i, " is of an unknown kind, or names a value that does not exist");
    if (static_cast<PixelNodeKind>(node.kind) != PixelNodeKind::kConvolution) continue;
    const auto& [weight, bias, mask_type, data_channels, down, across] = node.details;
    TORCH_CHECK(exists(weight, count) && (bias == -1 || exists(bias, count)), "node ", i,
                " names a parameter that does not exist");
    TORCH_CHECK(exists(mask_type, std::size(kMaskTypes)) && data_channels > 0 && down > 0 && across > 0, "node ", i,
                " has no such mask type, or a number of groups or a dilation that is not positive");
    TORCH_CHECK(groups == 1 || data_channels == 1 || data_channels == groups, "node ", i, " has ", data_channels,
                " groups of channels, where the network has ", groups);
    TORCH_CHECK(parameters[weight].dim() == 4 && parameters[weight].size(2) % 2 == 1 &&
                    parameters[weight].size(3) % 2 == 1 &&
                    (bias == -1 || parameters[bias].numel() == parameters[weight].size(0)),
                "node ", i, " has a weight or a bias of another shape");
  }
}

// Checks that each node's values have the channels, and the rows and margins, that it reads and writes.
void check_values(at::IntArrayRef nodes, at::TensorList values, at::TensorList parameters, int64_t width) {
  const auto channels = [&](int64_t value) { return values[value].size(3); };
  for (size_t i = 0; i < nodes.size() / kNodeSize; ++i) {
    const EncodedNode& node = decode(nodes)[i];
    const auto& details = node.details;
    bool fits =
        channels(node.first_input) == channels(node.output) && channels(node.second_input) == channels(node.output);
    switch (static_cast<PixelNodeKind>(node.kind)) {
      case PixelNodeKind::kConvolution: {
        const Tensor& weight = parameters[details[0]];
        const bool merged = details[5] == 1 && weight.size(3) > 1;
        const int64_t margin = (values[node.first_input].size(2) - width) / 2;
        fits = channels(node.first_input) == weight.size(1) && channels(node.output) == weight.size(0) &&
               (!merged || margin >= weight.size(3) / 2);
        break;
      }
      case PixelNodeKind::kGate:
        fits = channels(node.first_input) == 2 * channels(node.output) && details[2] > 0 &&
               channels(node.output) % details[2] == 0;
        break;
      case PixelNodeKind::kCopy:
        fits = details[0] >= 0 && details[1] >= 0 && details[2] >= 0 &&
               details[0] + details[2] <= channels(node.first_input) &&
               details[1] + details[2] <= channels(node.output);
        break;
      default:
        break;
    }
    TORCH_CHECK(fits, "node ", i, " does not fit the channels or the margins of its values");
  }
}

// Returns a convolution's params. Its details are the positions of weight and bias (-1 for none) among the parameters,
// the mask type, the number of groups of channels, and the dilation.
template <typename T>
PixelConvolution<T> convolution(const EncodedNode& node, at::TensorList parameters, int64_t width) {
  const auto& [weight_at, bias_at, mask_type, data_channels, down, across] = node.details;
  const Tensor& weight = parameters[weight_at];
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

template <typename T>
PixelNetworkDevice<T> device_of(const Tensor& tensor) {
#ifdef FUSED_RNN_CUDA
  if (tensor.is_cuda()) return pixel_network_on_cuda<T>();
#endif
  return pixel_network_on_cpu<T>();
}

// Calls body(T()) with the type of a tensor.
template <typename Body>
void for_type(const Tensor& tensor, const Body& body) {
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble,
                              "pixel_network: weights must be float32 or float64, got ", tensor.scalar_type());
  tensor.scalar_type() == at::kDouble ? body(double()) : body(float());
}

Tensor pixel_network_pack(at::TensorList parameters, at::IntArrayRef nodes, int64_t groups) {
  TORCH_CHECK(!parameters.empty(), "there is nothing to pack, since there are no parameters");
  check_nodes(nodes, std::numeric_limits<int64_t>::max(), parameters, groups);
  Tensor packed;
  for_type(parameters[0], [&](auto zero) {
    using T = decltype(zero);
    const PixelNetworkDevice<T> device = device_of<T>(parameters[0]);
    auto all = convolutions<T>(nodes, parameters, 1);
    std::vector<Tensor> weights;
    for (size_t i = 0; i < nodes.size() / kNodeSize; ++i)
      if (static_cast<PixelNodeKind>(decode(nodes)[i].kind) == PixelNodeKind::kConvolution)
        weights.push_back(parameters[decode(nodes)[i].details[0]]);
    packed = at::empty({device.place_weights(all, groups)}, parameters[0].options());
    device.pack_weights(all, weights, groups, packed);
  });
  return packed;
}

template <typename T>
PixelValue<T> pixel_value(const Tensor& tensor, int64_t width) {
  const bool broadcast = tensor.size(2) == 1;
  const int64_t margin = broadcast ? 0 : (tensor.size(2) - width) / 2;
  return {tensor.mutable_data_ptr<T>() + margin * tensor.size(3),
          tensor.size(3),
          tensor.size(1),
          tensor.stride(0),
          tensor.stride(1),
          broadcast ? 0 : tensor.size(3)};
}

// Checks that the network's outputs and the random numbers are those of a distribution.
void check_distribution(PixelDistribution distribution, int64_t outputs, int64_t channels, int64_t groups,
                        int64_t levels, int64_t numbers) {
  const int64_t parameters = distributions::LogisticMixture::parameters(channels);
  const bool fits = distribution == PixelDistribution::kCategorical
                        ? channels == groups && outputs == channels * levels && numbers == 1
                        : distribution == PixelDistribution::kLogisticMixture && groups == 1 &&
                              outputs % parameters == 0 && outputs > 0 && numbers == 1 + channels;
  TORCH_CHECK(fits, "the distribution is unknown, or does not fit ", outputs, " outputs for ", channels,
              " channels and ", numbers, " random numbers");
}

// Checks that tensors are where the values are, for a kernel to be able to read them.
void check_device(const Tensor& value, at::TensorList tensors, const char* name) {
  for (const Tensor& tensor : tensors)
    TORCH_CHECK(tensor.device() == value.device(), name, " must be on ", value.device(), ", like the values, got ",
                tensor.device());
}

void pixel_network(at::TensorList values, at::TensorList parameters, const Tensor& packed, at::IntArrayRef nodes,
                   int64_t groups, int64_t width, int64_t begin, int64_t end, const std::optional<Tensor>& image,
                   const std::optional<Tensor>& observed, const std::optional<Tensor>& uniforms,
                   const std::optional<Tensor>& scaled, const std::optional<Tensor>& outputs, int64_t distribution,
                   double factor, double offset, double temperature) {
  TORCH_CHECK(!values.empty() && !parameters.empty(), "values and parameters must not be empty");
  check_nodes(nodes, static_cast<int64_t>(values.size()), parameters, groups);
  TORCH_CHECK(0 <= begin && begin <= end && width > 0, "there are no steps from ", begin, " to ", end);
  for (const Tensor& value : values) {
    TORCH_CHECK(value.dim() == 4 && value.is_contiguous() && value.size(0) == values[0].size(0) && value.size(1) > 0 &&
                    (value.size(2) == 1 || value.size(2) >= width),
                "values must be contiguous, with the shape [batch, rows, columns, channels], got ", value.sizes());
    TORCH_CHECK(value.scalar_type() == parameters[0].scalar_type(), "values must have the dtype of the parameters, ",
                parameters[0].scalar_type(), ", got ", value.scalar_type());
  }
  check_values(nodes, values, parameters, width);
  const int64_t batch = values[0].size(0);
  if (batch == 0) return;
  check_device(values[0], values, "values");
  check_device(values[0], parameters, "parameters");
  check_device(values[0], packed, "packed");
  for (const auto& [tensor, name] :
       {std::pair(&image, "image"), std::pair(&observed, "observed"), std::pair(&uniforms, "uniforms"),
        std::pair(&scaled, "scaled"), std::pair(&outputs, "outputs")})
    if (*tensor) check_device(values[0], **tensor, name);
  bool is_finite = true;
  for_type(values[0], [&](auto zero) {
    using T = decltype(zero);
    const PixelNetworkDevice<T> device = device_of<T>(values[0]);
    std::vector<PixelValue<T>> pixel_values;
    for (const Tensor& value : values) pixel_values.push_back(pixel_value<T>(value, width));
    auto all = convolutions<T>(nodes, parameters, width);
    TORCH_CHECK(packed.scalar_type() == values[0].scalar_type() && packed.numel() == device.place_weights(all, groups),
                "packed must be what pixel_network_pack returned for these parameters");
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
    params.draw.distribution = static_cast<PixelDistribution>(distribution);
    const int64_t rows = (end + width * groups - 1) / (width * groups);
    if (image) {
      const int64_t channels = image->size(1), height = image->size(2);
      const int64_t numbers = uniforms && uniforms->dim() == 5 ? uniforms->size(4) : 0;
      TORCH_CHECK(image->sizes() == at::IntArrayRef({batch, channels, height, width}) && height >= rows &&
                      image->scalar_type() == at::kLong && image->is_contiguous() && values[0].size(3) == channels,
                  "image must be contiguous, int64, and have the shape of the images, got ", image->sizes());
      TORCH_CHECK(numbers > 0 && uniforms->sizes() == at::IntArrayRef({batch, height, width, groups, numbers}) &&
                      uniforms->scalar_type() == at::kDouble && uniforms->is_contiguous(),
                  "uniforms must be contiguous, float64, [batch, height, width, groups, numbers]");
      TORCH_CHECK(!observed || (observed->sizes() == at::IntArrayRef({batch, height, width}) &&
                                observed->scalar_type() == at::kBool && observed->is_contiguous()),
                  "observed must be contiguous, boolean, [batch, height, width]");
      TORCH_CHECK(scaled && scaled->dim() == 1 && scaled->scalar_type() == values[0].scalar_type() &&
                      scaled->is_contiguous() && scaled->size(0) > 0,
                  "scaled must have one number for each level, in the dtype of the values");
      check_distribution(static_cast<PixelDistribution>(distribution),
                         values[decode(nodes)[nodes.size() / kNodeSize - 1].output].size(3), channels, groups,
                         scaled->size(0), numbers);
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
      const int64_t channels = values[list.back().output].size(3);
      TORCH_CHECK(outputs->dim() == 4 && outputs->is_contiguous() &&
                      outputs->scalar_type() == values[0].scalar_type() &&
                      outputs->sizes() == at::IntArrayRef({batch, channels, outputs->size(2), width}) &&
                      outputs->size(2) >= rows,
                  "outputs must be contiguous, with the shape of the network's output, got ", outputs->sizes());
      params.draw.height = outputs->size(2);
      params.draw.outputs = outputs->mutable_data_ptr<T>();
    }
    is_finite = device.evaluate(params, values[0]);
  });
  TORCH_CHECK_VALUE(is_finite, "the network's output is NaN or infinite, so no pixel can be drawn from it");
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("pixel_network", pixel_network);
  library.impl("pixel_network_pack", pixel_network_pack);
}

#ifdef FUSED_RNN_CUDA
TORCH_LIBRARY_IMPL(fused_rnn, CUDA, library) {
  library.impl("pixel_network", pixel_network);
  library.impl("pixel_network_pack", pixel_network_pack);
}
#endif

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("pixel_network", torch::autograd::autogradNotImplementedFallback());
  library.impl("pixel_network_pack", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn::ops
