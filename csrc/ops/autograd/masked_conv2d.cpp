// The gradient of the operator masked_conv2d.

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "ops/autograd/autograd.h"

namespace fused_rnn::ops {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

const auto& forward_operator() {
  static const auto found = find_operator<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, std::string_view,
                                                 int64_t, at::IntArrayRef)>("fused_rnn::masked_conv2d");
  return found;
}

const auto& backward_operator() {
  static const auto found =
      find_operator<Gradients(const Tensor&, const Tensor&, const Tensor&, std::string_view, int64_t, at::IntArrayRef,
                              bool, bool, bool)>("fused_rnn::masked_conv2d_backward");
  return found;
}

// Arguments of the operator that have no gradient.
struct Call {
  std::string_view mask_type;
  int64_t data_channels;
  at::IntArrayRef dilation;
};

class MaskedConv2d : public torch::autograd::Function<MaskedConv2d> {
 public:
  static Tensor forward(AutogradContext* context, const Call& call, const Tensor& input, const Tensor& weight,
                        const OptionalTensor& bias) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->saved_data["mask_type"] = std::string(call.mask_type);
    context->saved_data["data_channels"] = call.data_channels;
    context->saved_data["dilation"] = call.dilation.vec();
    context->saved_data["biased"] = bias.has_value();
    context->save_for_backward({input, weight});
    return forward_operator().call(input, weight, bias, call.mask_type, call.data_channels, call.dilation);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const std::string mask_type = context->saved_data["mask_type"].toStringRef();
    // The inputs of forward that have gradients are counted without the call.
    const bool input_grad = context->needs_input_grad(0), weight_grad = context->needs_input_grad(1),
               bias_grad = context->saved_data["biased"].toBool() && context->needs_input_grad(2);
    const auto [grad_input, grad_weight, grad_bias] =
        backward_operator().call(grads[0], saved[0], saved[1], mask_type, context->saved_data["data_channels"].toInt(),
                                 context->saved_data["dilation"].toIntVector(), input_grad, weight_grad, bias_grad);
    return {Tensor(), input_grad ? grad_input : Tensor(), weight_grad ? grad_weight : Tensor(),
            bias_grad ? grad_bias : Tensor()};
  }
};

Tensor masked_conv2d(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     std::string_view mask_type, int64_t data_channels, at::IntArrayRef dilation) {
  if (needs_graph(input) || needs_graph(weight) || needs_graph(bias))
    return MaskedConv2d::apply(Call{mask_type, data_channels, dilation}, input, weight, bias);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return forward_operator().redispatch(keys & c10::after_autograd_keyset, input, weight, bias, mask_type, data_channels,
                                       dilation);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("masked_conv2d", TORCH_FN(masked_conv2d));
  library.impl("masked_conv2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn::ops
