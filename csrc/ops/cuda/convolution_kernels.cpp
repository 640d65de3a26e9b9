#include "ops/cuda/convolution_kernels.h"

#include <ATen/Context.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <atomic>

#include "cuda/masked_conv2d.h"
#include "ops/cuda/layer.h"
#include "ops/cuda/torch_cuda.h"

namespace fused_rnn::ops {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

std::atomic<ConvolutionPath> current_path = ConvolutionPath::kAny;

cuda::Device gpu_of(const Tensor& tensor) { return cuda::device_at(std::max<int>(0, tensor.device().index())); }
bool is_bfloat16(const Tensor& tensor) { return tensor.scalar_type() == at::kBFloat16; }
cuda::MmaType mma_type(const Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  return type == at::kBFloat16 ? cuda::MmaType::kBFloat16
         : type == at::kHalf   ? cuda::MmaType::kFloat16
                               : cuda::MmaType::kTF32;
}

// Returns images or a weight with neighbouring channels, where the copies of boxes can read them.
Tensor channels_last(const Tensor& tensor) {
  const Tensor dense = tensor.contiguous(kChannelsLast);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : dense.clone(kChannelsLast);
}

Tensor empty_images(const MaskedConv2d& layer, int64_t channels) {
  const MaskedConv2dSizes& s = layer.sizes;
  return at::empty({s.batch, channels, s.height, s.width}, layer.input.options().memory_format(kChannelsLast));
}

// Not the tensor's strides, which may be anything for dimensions of size 1.
Weights<const void> weight_params(const Tensor& weight, const MaskedConv2dSizes& sizes) {
  return {weight.const_data_ptr(), sizes.taps() * weight.size(1), 1, weight.size(1)};
}

cuda::ImageStrides strides_of(const Tensor& images) {
  return {images.stride(0), images.stride(1), images.stride(2), images.stride(3)};
}

}  // namespace

void set_convolution_path(ConvolutionPath path) { current_path = path; }

cuda::ConvolutionChoice choose_kernels(const MaskedConv2dSizes& sizes, at::ScalarType type, c10::DeviceIndex gpu) {
  constexpr auto kRectangles = cuda::Kernels::kRectangles;
  const ConvolutionPath path = current_path;
  const char* reason = nullptr;
  if (path == ConvolutionPath::kRectangles) reason = "kernels of our own are switched off";
  if (type == at::kFloat && !at::globalContext().allowTF32CuDNN(at::Float32Op::CONV))
    reason = "float32 may not be rounded to tf32 (torch.backends.cudnn.conv.fp32_precision)";
  if (type == at::kDouble) reason = "there are no kernels for float64";
  if (reason) return {kRectangles, kRectangles, kRectangles, reason};
  cuda::Device device = cuda::device_at(std::max<int>(0, gpu));
  if (path == ConvolutionPath::kMma) device.hopper = false;
  return cuda::choose_kernels(sizes, device, type == at::kFloat ? 4 : 2);
}

Tensor kernels_forward(const MaskedConv2d& layer, const Tensor& bias, MaskedConv2dActivation activation,
                       cuda::Kernels kernels) {
  const MaskedConv2dSizes& s = layer.sizes;
  const bool first = kernels == cuda::Kernels::kFirstLayer;
  const Tensor input = first ? layer.input : channels_last(layer.input);
  const Tensor weight = channels_last(layer.weight);
  const Tensor dense_bias = bias.defined() ? bias.contiguous() : bias;
  const Tensor output = empty_images(layer, s.out_channels);
  const MaskedConv2dForwardParams<void> params = {s,
                                                  {input.const_data_ptr(), true},
                                                  weight_params(weight, s),
                                                  bias.defined() ? dense_bias.const_data_ptr() : nullptr,
                                                  {output.mutable_data_ptr(), true},
                                                  activation,
                                                  /*residual=*/nullptr,
                                                  /*sums=*/{}};
  const bool bfloat16 = is_bfloat16(input);
  const cuda::Device gpu = gpu_of(input);
  void* const stream = current_stream(input.device());
  if (kernels == cuda::Kernels::kMma) {
    const auto plan = cuda::plan_mma_correlation(s, s.out_channels, gpu);
    check_launch(cuda::mma_masked_conv2d(mma_type(input), params, plan, stream));
  } else {
    check_launch(first ? cuda::first_layer(bfloat16, params, strides_of(input), cuda::plan_first_layer(s, gpu), stream)
                       : cuda::masked_conv2d(bfloat16, params, cuda::plan_correlation(s, s.out_channels, gpu), stream));
  }
  return output.contiguous(layer.format);
}

Tensor kernels_input_gradient(const MaskedConv2d& layer, const Tensor& grad_output, cuda::Kernels kernels) {
  const bool mma = kernels == cuda::Kernels::kMma;
  const MaskedConv2dSizes s = mma ? layer.sizes : cuda::pad_in_channels(layer.sizes);
  Tensor weight = layer.weight;
  if (s.in_channels != layer.sizes.in_channels) {
    const int64_t missing = cuda::round_up(s.in_channels, cuda::kChannels) - layer.sizes.in_channels;
    weight = at::constant_pad_nd(weight, {0, 0, 0, 0, 0, missing});
  }
  weight = channels_last(weight);
  const Tensor grad = channels_last(grad_output), grad_input = empty_images(layer, s.in_channels);
  const MaskedConv2dInputGradientParams<void> params = {
      s, {grad.const_data_ptr(), true}, weight_params(weight, s), {grad_input.mutable_data_ptr(), true}};
  const cuda::Device gpu = gpu_of(grad);
  void* const stream = current_stream(grad.device());
  check_launch(mma ? cuda::mma_masked_conv2d_input_gradient(mma_type(grad), params,
                                                            cuda::plan_mma_correlation(s, s.in_channels, gpu), stream)
                   : cuda::masked_conv2d_input_gradient(is_bfloat16(grad), params,
                                                        cuda::plan_correlation(s, s.in_channels, gpu), stream));
  return grad_input.narrow(1, 0, layer.sizes.in_channels).contiguous(layer.format);
}

void kernels_parameter_gradients(const MaskedConv2d& layer, const Tensor& grad_output, bool bias, cuda::Kernels kernels,
                                 MaskedConv2dGradients& gradients) {
  const MaskedConv2dSizes& s = layer.sizes;
  const bool first = kernels == cuda::Kernels::kFirstLayer;
  const Tensor grad = channels_last(grad_output);
  const Tensor input = first ? layer.input : channels_last(layer.input);
  const Tensor grad_weight = at::empty_like(layer.weight, layer.weight.suggest_memory_format());
  if (bias) gradients.bias = at::empty({s.out_channels}, grad.options());
  const Weights<void> written = {grad_weight.mutable_data_ptr(), grad_weight.stride(0), grad_weight.stride(1),
                                 grad_weight.stride(s.kernel_width == 1 ? 2 : 3)};
  const MaskedConv2dParameterGradientsParams<void> params = {s,
                                                             {grad.const_data_ptr(), true},
                                                             {input.const_data_ptr(), true},
                                                             written,
                                                             bias ? gradients.bias.mutable_data_ptr() : nullptr};
  const cuda::Device gpu = gpu_of(grad);
  void* const stream = current_stream(grad.device());
  const auto scratch = [&](int64_t values) { return at::empty(values, grad.options().dtype(at::kFloat)); };
  if (first) {
    const auto plan = cuda::plan_first_layer_gradient(s, gpu);
    const Tensor slots = scratch(plan.scratch_values());
    check_launch(cuda::first_layer_parameter_gradients(is_bfloat16(grad), params, strides_of(input),
                                                       slots.mutable_data_ptr<float>(), plan, stream));
  } else if (kernels == cuda::Kernels::kMma) {
    const auto plan = cuda::plan_mma_weight_gradient(s, gpu);
    const Tensor slots = scratch(plan.scratch_values());
    check_launch(cuda::mma_masked_conv2d_parameter_gradients(mma_type(grad), params, slots.mutable_data_ptr<float>(),
                                                             plan, stream));
  } else {
    const auto plan = cuda::plan_weight_gradient(s, gpu);
    const Tensor slots = scratch(plan.scratch_values());
    check_launch(cuda::masked_conv2d_parameter_gradients(is_bfloat16(grad), params, slots.mutable_data_ptr<float>(),
                                                         plan, stream));
  }
  gradients.weight = grad_weight;
}

}  // namespace fused_rnn::ops
