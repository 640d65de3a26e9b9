#include "ops/masked_conv2d_cpu.h"

#include <ATen/ops/empty.h>

#include "cpu/masked_conv2d.h"
#include "ops/dispatch.h"
#include "ops/dtype.h"
#include "ops/memory.h"

namespace fused_rnn::ops {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

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

// Returns an uninitialised tensor for a kernel to write, in the type of the computation.
Tensor empty(const Tensor& like, at::IntArrayRef shape, at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return with_huge_pages(at::empty(shape, like.options().dtype(compute_type(like)).memory_format(format)));
}

// Calls body(T()) with the type of the computation, T.
template <typename Body>
void for_type(at::ScalarType compute, const Body& body) {
  compute == at::kDouble ? body(double()) : body(float());
}

}  // namespace

MaskedConv2dResults masked_conv2d_fused_on_cpu(const MaskedConv2d& layer, const Tensor& bias,
                                               const MaskedConv2dEpilogue& epilogue) {
  const at::ScalarType compute = compute_type(layer.input);
  const Tensor kernel_input = images_for_kernel(layer.input);
  const Tensor kernel_weight = weight_for_kernel(layer.weight);
  const Tensor kernel_bias = bias.defined() ? bias.to(compute).contiguous() : Tensor();
  const Tensor output = empty(layer.input, layer.output_shape(epilogue.activation), layer.format);
  const Tensor residual =
      epilogue.residual.defined() ? epilogue.residual.to(compute).contiguous(layer.format) : Tensor();
  const Tensor sums =
      epilogue.keeps_sums ? empty(layer.input, layer.output_shape(), layer.format) : empty(layer.input, {0});
  for_type(compute, [&](auto zero) {
    using T = decltype(zero);
    const MaskedConv2dForwardParams<T> params = {layer.sizes,
                                                 images<T>(kernel_input),
                                                 weights<T>(kernel_weight),
                                                 bias.defined() ? kernel_bias.const_data_ptr<T>() : nullptr,
                                                 mutable_images<T>(output),
                                                 epilogue.activation,
                                                 residual.defined() ? residual.const_data_ptr<T>() : nullptr,
                                                 epilogue.keeps_sums ? mutable_images<T>(sums) : Images<T>()};
    FUSED_RNN_CPU_CALL(masked_conv2d, params);
  });
  const auto type = layer.input.scalar_type();
  return {output.to(type), sums.to(type)};
}

Tensor masked_conv2d_on_cpu(const MaskedConv2d& layer, const Tensor& bias) {
  return masked_conv2d_fused_on_cpu(layer, bias, {}).output;
}

MaskedConv2dGradients masked_conv2d_backward_on_cpu(const MaskedConv2d& layer, const Tensor& grad_output,
                                                    MaskedConv2dWanted wanted) {
  const Tensor &input = layer.input, &weight = layer.weight;
  const Tensor kernel_grad = images_for_kernel(grad_output);
  const Tensor grad_input = wanted.input ? empty(input, input.sizes(), layer.format) : empty(input, {0});
  const Tensor grad_weight =
      wanted.weight ? empty(weight, weight.sizes(), weight.suggest_memory_format()) : empty(weight, {0});
  const Tensor grad_bias = empty(weight, {wanted.bias ? layer.sizes.out_channels : 0});
  for_type(compute_type(input), [&](auto zero) {
    using T = decltype(zero);
    if (wanted.input) {
      const Tensor kernel_weight = weight_for_kernel(weight);
      const MaskedConv2dInputGradientParams<T> params = {layer.sizes, images<T>(kernel_grad), weights<T>(kernel_weight),
                                                         mutable_images<T>(grad_input)};
      FUSED_RNN_CPU_CALL(masked_conv2d_input_gradient, params);
    }
    if (wanted.weight || wanted.bias) {
      const Tensor kernel_input = images_for_kernel(input);
      const MaskedConv2dParameterGradientsParams<T> params = {
          layer.sizes, images<T>(kernel_grad), images<T>(kernel_input),
          wanted.weight ? mutable_weights<T>(grad_weight) : Weights<T>(),
          wanted.bias ? grad_bias.mutable_data_ptr<T>() : nullptr};
      FUSED_RNN_CPU_CALL(masked_conv2d_parameter_gradients, params);
    }
  });
  const auto type = input.scalar_type();
  return {grad_input.to(type), grad_weight.to(type), grad_bias.to(type)};
}

}  // namespace fused_rnn::ops
