#include "ops/cuda/masked_conv2d.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

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

MaskedConv2dGradients masked_conv2d_backward_on_cuda(const MaskedConv2d& layer, const Tensor& grad_output,
                                                     MaskedConv2dWanted wanted) {
  const Guards guards(layer);
  return rectangles_backward(layer, grad_output, wanted);
}

}  // namespace fused_rnn::ops
