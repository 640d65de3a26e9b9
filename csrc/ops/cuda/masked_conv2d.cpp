#include "ops/cuda/masked_conv2d.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

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

}  // namespace

// Kernels of our own are to be chosen here, for the sizes, dtypes and GPUs that they serve.
Tensor masked_conv2d_on_cuda(const MaskedConv2d& layer, const Tensor& bias) {
  const Guards guards(layer);
  return rectangles_forward(layer, bias);
}

// Activation and residual are computed after the convolution, until a kernel of our own does so on the way.
MaskedConv2dResults masked_conv2d_fused_on_cuda(const MaskedConv2d& layer, const Tensor& bias,
                                                const MaskedConv2dEpilogue& epilogue) {
  const Guards guards(layer);
  const Tensor sums = masked_conv2d_on_cuda(layer, bias);
  Tensor output = sums;
  if (epilogue.activation == MaskedConv2dActivation::kReLU)
    output = epilogue.keeps_sums ? sums.relu() : sums.relu_();
  else if (epilogue.activation == MaskedConv2dActivation::kGated)
    output = gated_activation_on_cuda(sums, layer.sizes.data_channels);
  if (epilogue.residual.defined()) output.add_(epilogue.residual);
  return {output, epilogue.keeps_sums ? sums : sums.new_empty({0})};
}

MaskedConv2dGradients masked_conv2d_backward_on_cuda(const MaskedConv2d& layer, const Tensor& grad_output,
                                                     MaskedConv2dWanted wanted) {
  const Guards guards(layer);
  return rectangles_backward(layer, grad_output, wanted);
}

}  // namespace fused_rnn::ops
