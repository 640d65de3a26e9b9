#include "ops/cuda/masked_conv2d.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "ops/cuda/hopper_convolution.h"
#include "ops/cuda/rectangles.h"

namespace fused_rnn::ops {
namespace {

// While this lives, the layer's GPU is the current one, and autocast changes the type of no convolution.
struct Guards {
  explicit Guards(const MaskedConv2d& layer) : device(layer.input.device()) {}

  const c10::DeviceGuard device;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Whether kernels of our own compute the layer; else torch's convolutions do.
bool by_own_kernels(const MaskedConv2d& layer) {
  return why_not_hopper(layer.sizes, layer.input.scalar_type(), layer.input.device().index()) == nullptr;
}

}  // namespace

Tensor masked_conv2d_on_cuda(const MaskedConv2d& layer, const Tensor& bias) {
  const Guards guards(layer);
  return by_own_kernels(layer) ? hopper_forward(layer, bias) : rectangles_forward(layer, bias);
}

MaskedConv2dGradients masked_conv2d_backward_on_cuda(const MaskedConv2d& layer, const Tensor& grad_output,
                                                     MaskedConv2dWanted wanted) {
  const Guards guards(layer);
  if (!by_own_kernels(layer)) return rectangles_backward(layer, grad_output, wanted);
  // A bias gradient alone is a sum.
  MaskedConv2dGradients gradients =
      rectangles_backward(layer, grad_output, {false, false, wanted.bias && !wanted.weight});
  if (wanted.input) gradients.input = hopper_input_gradient(layer, grad_output);
  if (wanted.weight) hopper_parameter_gradients(layer, grad_output, wanted.bias, gradients);
  return gradients;
}

}  // namespace fused_rnn::ops
