#include "ops/cuda/masked_conv2d.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "ops/cuda/convolution_kernels.h"
#include "ops/cuda/gated_activation.h"
#include "ops/cuda/rectangles.h"

namespace fused_rnn::ops {
namespace {

// While this lives, the layer's GPU is the current one, and autocast changes the type of no convolution.
struct Guards {
  explicit Guards(const MaskedConv2d& layer) : device(layer.input.device()) {}

  const c10::DeviceGuard device;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

cuda::ConvolutionChoice choose(const MaskedConv2d& layer) {
  return choose_kernels(layer.sizes, layer.input.scalar_type(), layer.input.device().index());
}

constexpr auto kRectangles = cuda::Kernels::kRectangles;
constexpr auto kNone = MaskedConv2dActivation::kNone;

}  // namespace

Tensor masked_conv2d_on_cuda(const MaskedConv2d& layer, const Tensor& bias) {
  const Guards guards(layer);
  const cuda::ConvolutionChoice choice = choose(layer);
  return choice.forward == kRectangles ? rectangles_forward(layer, bias)
                                       : kernels_forward(layer, bias, kNone, choice.forward);
}

// Kernels of our own compute ReLU on the way, unless the sums are wanted, too. A gate and a residual are computed after
// the convolution.
MaskedConv2dResults masked_conv2d_fused_on_cuda(const MaskedConv2d& layer, const Tensor& bias,
                                                const MaskedConv2dEpilogue& epilogue) {
  const Guards guards(layer);
  const cuda::ConvolutionChoice choice = choose(layer);
  const bool relu = epilogue.activation == MaskedConv2dActivation::kReLU;
  const bool on_the_way = choice.forward != kRectangles && relu && !epilogue.keeps_sums;
  const Tensor sums = choice.forward == kRectangles
                          ? rectangles_forward(layer, bias)
                          : kernels_forward(layer, bias, on_the_way ? epilogue.activation : kNone, choice.forward);
  Tensor output = sums;
  if (relu && !on_the_way)
    output = epilogue.keeps_sums ? sums.relu() : sums.relu_();
  else if (epilogue.activation == MaskedConv2dActivation::kGated)
    output = gated_activation_on_cuda(sums, layer.sizes.data_channels);
  if (epilogue.residual.defined()) output.add_(epilogue.residual);
  return {output, epilogue.keeps_sums ? sums : sums.new_empty({0})};
}

MaskedConv2dGradients masked_conv2d_backward_on_cuda(const MaskedConv2d& layer, const Tensor& grad_output,
                                                     MaskedConv2dWanted wanted) {
  const Guards guards(layer);
  const cuda::ConvolutionChoice choice = choose(layer);
  const bool own_input = wanted.input && choice.input_gradient != kRectangles;
  // A bias gradient alone is a sum.
  const bool own_weight = wanted.weight && choice.parameter_gradients != kRectangles;
  MaskedConv2dGradients gradients = rectangles_backward(
      layer, grad_output, {wanted.input && !own_input, wanted.weight && !own_weight, wanted.bias && !own_weight});
  if (own_input) gradients.input = kernels_input_gradient(layer, grad_output, choice.input_gradient);
  if (own_weight) kernels_parameter_gradients(layer, grad_output, wanted.bias, choice.parameter_gradients, gradients);
  return gradients;
}

}  // namespace fused_rnn::ops
