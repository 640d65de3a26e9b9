// The operators masked_conv2d and masked_conv2d_backward: they check their arguments, allocate the results and call the
// kernels.

#include "cpu/masked_conv2d.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "ops/dispatch.h"
#include "ops/dtype.h"
#include "ops/mask_type.h"

namespace fused_rnn::ops {
namespace {

using at::Tensor;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

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

// Checks input, weight and options, with the error messages of torch.nn, and returns the sizes.
MaskedConv2dSizes check_sizes(const Tensor& input, const Tensor& weight, const Options& options) {
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
  sizes.threads = at::get_num_threads();
  return sizes;
}

// Returns the type of the computation.
at::ScalarType compute_type(const Tensor& tensor) { return accumulation_type(tensor.scalar_type()); }

// Returns images as the kernels need them: in the type of the computation, and dense in one of the two memory formats.
Tensor images_for_kernel(const Tensor& images) {
  const Tensor computed = images.to(compute_type(images));
  return computed.is_contiguous() || computed.is_contiguous(kChannelsLast) ? computed : computed.contiguous();
}
// Returns weights as the kernels need them: in the type of the computation, and with one stride for all taps.
Tensor weight_for_kernel(const Tensor& weight) {
  const Tensor computed = weight.to(compute_type(weight));
  const bool one_dimensional = weight.size(2) == 1 || weight.size(3) == 1;
  return one_dimensional || computed.stride(2) == computed.size(3) * computed.stride(3) ? computed
                                                                                        : computed.contiguous();
}

template <typename T>
Images<const T> images(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.is_contiguous(kChannelsLast)};
}
template <typename T>
Images<T> mutable_images(const Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(), tensor.is_contiguous(kChannelsLast)};
}

int64_t tap_stride(const Tensor& weight) { return weight.stride(weight.size(3) == 1 ? 2 : 3); }

template <typename T>
Weights<const T> weights(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tap_stride(tensor)};
}
template <typename T>
Weights<T> mutable_weights(const Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tap_stride(tensor)};
}

// Returns the memory format of a result, as in torch.nn: channels last if one of the two tensors has it.
at::MemoryFormat result_format(const Tensor& a, const Tensor& b) {
  const bool last = a.suggest_memory_format() == kChannelsLast || b.suggest_memory_format() == kChannelsLast;
  return last ? kChannelsLast : at::MemoryFormat::Contiguous;
}

// Returns an uninitialised tensor for a kernel to write, in the type of the computation.
Tensor empty(const Tensor& like, at::IntArrayRef shape, at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return at::empty(shape, like.options().dtype(compute_type(like)).memory_format(format));
}

// Calls body(T()) with the type of the computation, T.
template <typename Body>
void for_type(at::ScalarType compute, const Body& body) {
  compute == at::kDouble ? body(double()) : body(float());
}

Tensor masked_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                     std::string_view mask_type, int64_t data_channels, at::IntArrayRef dilation) {
  const MaskedConv2dSizes sizes = check_sizes(input, weight, {mask_type, data_channels, dilation});
  if (bias) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "Given weight of size ", weight.sizes(),
                ", expected bias to be 1-dimensional with ", weight.size(0), " elements, but got bias of size ",
                bias->sizes(), " instead");
    check_like_input(*bias, "bias", input);
  }
  const Tensor kernel_input = images_for_kernel(input);
  const Tensor kernel_weight = weight_for_kernel(weight);
  const Tensor kernel_bias = bias ? bias->to(compute_type(input)).contiguous() : Tensor();
  const Tensor output =
      empty(input, {sizes.batch, sizes.out_channels, sizes.height, sizes.width}, result_format(input, weight));
  for_type(compute_type(input), [&](auto zero) {
    using T = decltype(zero);
    const MaskedConv2dForwardParams<T> params = {sizes, images<T>(kernel_input), weights<T>(kernel_weight),
                                                 bias ? kernel_bias.const_data_ptr<T>() : nullptr,
                                                 mutable_images<T>(output)};
    FUSED_RNN_CPU_CALL(masked_conv2d, params);
  });
  return output.to(input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> masked_conv2d_backward(const Tensor& grad_output, const Tensor& input,
                                                          const Tensor& weight, std::string_view mask_type,
                                                          int64_t data_channels, at::IntArrayRef dilation,
                                                          bool input_grad, bool weight_grad, bool bias_grad) {
  const MaskedConv2dSizes sizes = check_sizes(input, weight, {mask_type, data_channels, dilation});
  const int64_t grad_shape[] = {sizes.batch, sizes.out_channels, sizes.height, sizes.width};
  TORCH_CHECK(grad_output.sizes() == at::IntArrayRef(grad_shape), "Expected grad_output of size ",
              at::IntArrayRef(grad_shape), ", but got grad_output of size ", grad_output.sizes());
  check_like_input(grad_output, "grad_output", input);
  const Tensor kernel_grad = images_for_kernel(grad_output);
  const Tensor grad_input = input_grad ? empty(input, input.sizes(), result_format(input, weight)) : empty(input, {0});
  const Tensor grad_weight =
      weight_grad ? empty(weight, weight.sizes(), weight.suggest_memory_format()) : empty(weight, {0});
  const Tensor grad_bias = empty(weight, {bias_grad ? sizes.out_channels : 0});
  for_type(compute_type(input), [&](auto zero) {
    using T = decltype(zero);
    if (input_grad) {
      const Tensor kernel_weight = weight_for_kernel(weight);
      const MaskedConv2dInputGradientParams<T> params = {sizes, images<T>(kernel_grad), weights<T>(kernel_weight),
                                                         mutable_images<T>(grad_input)};
      FUSED_RNN_CPU_CALL(masked_conv2d_input_gradient, params);
    }
    if (weight_grad || bias_grad) {
      const Tensor kernel_input = images_for_kernel(input);
      const MaskedConv2dParameterGradientsParams<T> params = {
          sizes, images<T>(kernel_grad), images<T>(kernel_input),
          weight_grad ? mutable_weights<T>(grad_weight) : Weights<T>(),
          bias_grad ? grad_bias.mutable_data_ptr<T>() : nullptr};
      FUSED_RNN_CPU_CALL(masked_conv2d_parameter_gradients, params);
    }
  });
  const auto type = input.scalar_type();
  return {grad_input.to(type), grad_weight.to(type), grad_bias.to(type)};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("masked_conv2d", masked_conv2d);
  library.impl("masked_conv2d_backward", masked_conv2d_backward);
}

}  // namespace fused_rnn::ops
