// The operators masked_conv2d, masked_conv2d_fused and masked_conv2d_backward: they check their arguments and compute
// on the input's device.

#include "ops/masked_conv2d.h"

#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "ops/dtype.h"
#include "ops/mask_type.h"
#include "ops/masked_conv2d_cpu.h"
#include "ops/threads.h"

#ifdef FUSED_RNN_CUDA
#include "ops/cuda/masked_conv2d.h"
#endif

namespace fused_rnn::ops {
namespace {

// The arguments of the operators that are not tensors.
struct Options {
  std::string_view mask_type;
  int64_t data_channels;
  at::IntArrayRef dilation;
};

void check_options(const Options& options, const Tensor& weight) {
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1), groups = options.data_channels;
  TORCH_CHECK_VALUE(options.mask_type == "A" || options.mask_type == "B" || is_vertical(options.mask_type),
                    "mask_type must be 'A', 'B', 'vertical_A' or 'vertical_B', got '", options.mask_type, "'");
  TORCH_CHECK_VALUE(weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, "kernel_size must be odd, got (",
                    weight.size(2), ", ", weight.size(3), ")");
  TORCH_CHECK_VALUE(groups >= 1, "data_channels must be positive, got ", groups);
  TORCH_CHECK_VALUE(groups == 1 || (groups <= in_channels && groups <= out_channels),
                    "data_channels must not exceed in_channels and out_channels, got data_channels=", groups,
                    ", in_channels=", in_channels, ", out_channels=", out_channels);
  TORCH_CHECK_VALUE(groups == 1 || !is_vertical(options.mask_type), "data_channels must be 1 with mask_type '",
                    options.mask_type, "', whose taps all see every channel, got ", groups);
  TORCH_CHECK(options.dilation.size() == 2,
              "expected dilation to be a single integer value or a list of 2 values, got ", options.dilation);
  TORCH_CHECK(options.dilation[0] > 0 && options.dilation[1] > 0, "non-positive dilation is not supported");
}

// Checks that `tensor` has the same dtype and device as the input.
void check_like_input(const Tensor& tensor, const char* name, const Tensor& input) {
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), "Input type (", input.scalar_type(), ") and ", name,
              " type (", tensor.scalar_type(), ") should be the same");
  TORCH_CHECK(tensor.device() == input.device(), "input is on ", input.device(), ", but ", name, " is on ",
              tensor.device());
}

// Returns the memory format of a result, as in torch.nn: channels last if one of the two tensors has it.
at::MemoryFormat result_format(const Tensor& a, const Tensor& b) {
  constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;
  const bool last = a.suggest_memory_format() == kChannelsLast || b.suggest_memory_format() == kChannelsLast;
  return last ? kChannelsLast : at::MemoryFormat::Contiguous;
}

// Checks input, weight and options, with the error messages of torch.nn.
MaskedConv2d check_layer(const Tensor& input, const Tensor& weight, const Options& options) {
  check_dtype(input);
  TORCH_CHECK(input.dim() == 4,
              "Expected 3D (unbatched) or 4D (batched) input to masked_conv2d, but got input of size: ", input.sizes());
  TORCH_CHECK(weight.dim() == 4, "Expected 4D weight for masked_conv2d, but got weight of size: ", weight.sizes());
  check_like_input(weight, "weight", input);
  check_options(options, weight);
  TORCH_CHECK(weight.size(0) > 0, "expected weight to be at least 1 at dimension 0, but got weight of size ",
              weight.sizes(), " instead");
  TORCH_CHECK(input.size(1) == weight.size(1), "Given weight of size ", weight.sizes(), ", expected input",
              input.sizes(), " to have ", weight.size(1), " channels, but got ", input.size(1), " channels instead");
  TORCH_CHECK(input.size(2) > 0 && input.size(3) > 0, "Expected input to have height and width, but got input of size ",
              input.sizes());
  MaskedConv2dSizes sizes;
  sizes.batch = input.size(0);
  sizes.height = input.size(2);
  sizes.width = input.size(3);
  sizes.in_channels = weight.size(1);
  sizes.out_channels = weight.size(0);
  sizes.kernel_height = weight.size(2);
  sizes.kernel_width = weight.size(3);
  // From the image's size on, a larger dilation changes nothing, since all taps off the centre's row or column are
  // outside the image already. The limit keeps products from overflowing.
  sizes.dilation_height = std::min(options.dilation[0], sizes.height);
  sizes.dilation_width = std::min(options.dilation[1], sizes.width);
  sizes.data_channels = options.data_channels;
  set_mask(sizes, options.mask_type);
  sizes.threads = most_threads();
  return {sizes, input, weight, result_format(input, weight)};
}

void check_bias(const Tensor& bias, const MaskedConv2d& layer) {
  const Tensor& weight = layer.weight;
  TORCH_CHECK(bias.dim() == 1 && bias.size(0) == weight.size(0), "Given weight of size ", weight.sizes(),
              ", expected bias to be 1-dimensional with ", weight.size(0), " elements, but got bias of size ",
              bias.sizes(), " instead");
  check_like_input(bias, "bias", layer.input);
}

// Checks that images have a shape, and the dtype and device of the input.
void check_images(const Tensor& images, const char* name, at::IntArrayRef expected, const MaskedConv2d& layer) {
  TORCH_CHECK(images.sizes() == expected, "Expected ", name, " of size ", expected, ", but got ", name, " of size ",
              images.sizes());
  check_like_input(images, name, layer.input);
}

Tensor masked_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                     std::string_view mask_type, int64_t data_channels, at::IntArrayRef dilation) {
  const MaskedConv2d layer = check_layer(input, weight, {mask_type, data_channels, dilation});
  if (bias) check_bias(*bias, layer);
#ifdef FUSED_RNN_CUDA
  if (input.is_cuda()) return masked_conv2d_on_cuda(layer, bias.value_or(Tensor()));
#endif
  return masked_conv2d_on_cpu(layer, bias.value_or(Tensor()));
}

MaskedConv2dActivation activation_of(std::string_view name) {
  TORCH_CHECK_VALUE(name == "none" || name == "relu" || name == "gated",
                    "activation must be 'none', 'relu' or 'gated', got '", name, "'");
  if (name == "relu") return MaskedConv2dActivation::kReLU;
  return name == "gated" ? MaskedConv2dActivation::kGated : MaskedConv2dActivation::kNone;
}

MaskedConv2dResults fused(const MaskedConv2d& layer, const Tensor& bias, const MaskedConv2dEpilogue& epilogue) {
#ifdef FUSED_RNN_CUDA
  if (layer.input.is_cuda()) return masked_conv2d_fused_on_cuda(layer, bias, epilogue);
#endif
  return masked_conv2d_fused_on_cpu(layer, bias, epilogue);
}

std::tuple<Tensor, Tensor> masked_conv2d_fused(const Tensor& input, const Tensor& weight,
                                               const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                                               std::string_view mask_type, int64_t data_channels,
                                               at::IntArrayRef dilation, std::string_view activation,
                                               bool save_for_backward) {
  const MaskedConv2d layer = check_layer(input, weight, {mask_type, data_channels, dilation});
  if (bias) check_bias(*bias, layer);
  MaskedConv2dEpilogue epilogue = {activation_of(activation), residual.value_or(Tensor())};
  const bool gated = epilogue.activation == MaskedConv2dActivation::kGated;
  TORCH_CHECK_VALUE(!gated || weight.size(0) % (2 * data_channels) == 0,
                    "with activation 'gated', out_channels must be a multiple of 2 * data_channels, got out_channels=",
                    weight.size(0), " and data_channels=", data_channels);
  if (residual) check_images(*residual, "residual", layer.output_shape(epilogue.activation), layer);
  // Without a residual, the output of ReLU says where its derivative is zero.
  const bool relu = epilogue.activation == MaskedConv2dActivation::kReLU;
  epilogue.keeps_sums = save_for_backward && (gated || (relu && residual));
  MaskedConv2dResults results = fused(layer, bias.value_or(Tensor()), epilogue);
  return {std::move(results.output), std::move(results.sums)};
}

MaskedConv2dGradients backward(const MaskedConv2d& layer, const Tensor& grad_output, MaskedConv2dWanted wanted) {
#ifdef FUSED_RNN_CUDA
  if (layer.input.is_cuda()) return masked_conv2d_backward_on_cuda(layer, grad_output, wanted);
#endif
  return masked_conv2d_backward_on_cpu(layer, grad_output, wanted);
}

std::tuple<Tensor, Tensor, Tensor> masked_conv2d_backward(const Tensor& grad_output, const Tensor& input,
                                                          const Tensor& weight, std::string_view mask_type,
                                                          int64_t data_channels, at::IntArrayRef dilation,
                                                          bool input_grad, bool weight_grad, bool bias_grad) {
  const MaskedConv2d layer = check_layer(input, weight, {mask_type, data_channels, dilation});
  check_images(grad_output, "grad_output", layer.output_shape(), layer);
  MaskedConv2dGradients gradients = backward(layer, grad_output, {input_grad, weight_grad, bias_grad});
  return {std::move(gradients.input), std::move(gradients.weight), std::move(gradients.bias)};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("masked_conv2d", masked_conv2d);
  library.impl("masked_conv2d_fused", masked_conv2d_fused);
  library.impl("masked_conv2d_backward", masked_conv2d_backward);
}

#ifdef FUSED_RNN_CUDA
TORCH_LIBRARY_IMPL(fused_rnn, CUDA, library) {
  library.impl("masked_conv2d", masked_conv2d);
  library.impl("masked_conv2d_fused", masked_conv2d_fused);
  library.impl("masked_conv2d_backward", masked_conv2d_backward);
}
#endif

}  // namespace fused_rnn::ops
