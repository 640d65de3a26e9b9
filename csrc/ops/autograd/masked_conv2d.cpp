// The gradients of the operators masked_conv2d and masked_conv2d_fused.

#include <ATen/ops/threshold_backward.h>
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

const auto& fused_operator() {
  static const auto found = find_operator<std::tuple<Tensor, Tensor>(
      const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, std::string_view, int64_t,
      at::IntArrayRef, std::string_view, bool)>("fused_rnn::masked_conv2d_fused");
  return found;
}

const auto& backward_operator() {
  static const auto found =
      find_operator<Gradients(const Tensor&, const Tensor&, const Tensor&, std::string_view, int64_t, at::IntArrayRef,
                              bool, bool, bool)>("fused_rnn::masked_conv2d_backward");
  return found;
}

const auto& gate_backward_operator() {
  static const auto found =
      find_operator<Tensor(const Tensor&, const Tensor&, int64_t)>("fused_rnn::gated_activation_backward");
  return found;
}

// Arguments of the operators that have no gradient.
struct Call {
  std::string_view mask_type;
  int64_t data_channels;
  at::IntArrayRef dilation;

  void save(AutogradContext& context) const {
    context.saved_data["mask_type"] = std::string(mask_type);
    context.saved_data["data_channels"] = data_channels;
    context.saved_data["dilation"] = dilation.vec();
  }
};

// Returns the gradients of input, weight and bias; undefined where they are not needed. Call::save() has been called,
// and the first inputs of forward that have gradients were these.
variable_list convolution_gradients(AutogradContext& context, const Tensor& grad_output, const Tensor& input,
                                    const Tensor& weight) {
  const std::string mask_type = context.saved_data["mask_type"].toStringRef();
  const bool input_grad = context.needs_input_grad(0), weight_grad = context.needs_input_grad(1),
             bias_grad = context.saved_data["biased"].toBool() && context.needs_input_grad(2);
  if (!input_grad && !weight_grad && !bias_grad) return {Tensor(), Tensor(), Tensor()};
  const auto [grad_input, grad_weight, grad_bias] =
      backward_operator().call(grad_output, input, weight, mask_type, context.saved_data["data_channels"].toInt(),
                               context.saved_data["dilation"].toIntVector(), input_grad, weight_grad, bias_grad);
  return {input_grad ? grad_input : Tensor(), weight_grad ? grad_weight : Tensor(), bias_grad ? grad_bias : Tensor()};
}

class MaskedConv2d : public torch::autograd::Function<MaskedConv2d> {
 public:
  static Tensor forward(AutogradContext* context, const Call& call, const Tensor& input, const Tensor& weight,
                        const OptionalTensor& bias) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    call.save(*context);
    context->saved_data["biased"] = bias.has_value();
    context->save_for_backward({input, weight});
    return forward_operator().call(input, weight, bias, call.mask_type, call.data_channels, call.dilation);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    variable_list gradients = convolution_gradients(*context, grads[0], saved[0], saved[1]);
    gradients.insert(gradients.begin(), Tensor());  // that of the call
    return gradients;
  }
};

class MaskedConv2dFused : public torch::autograd::Function<MaskedConv2dFused> {
 public:
  // Returns output and sums.
  static variable_list forward(AutogradContext* context, const Call& call, std::string_view activation,
                               const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& residual) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [output, sums] = fused_operator().call(input, weight, bias, residual, call.mask_type, call.data_channels,
                                                      call.dilation, activation, true);
    call.save(*context);
    context->saved_data["biased"] = bias.has_value();
    context->saved_data["residual"] = residual.has_value();
    context->saved_data["activation"] = std::string(activation);
    context->mark_non_differentiable({sums});
    // Without sums, the output of ReLU says where its derivative is zero. No other output is read, so that it may
    // be changed in place.
    const bool from_output = activation == "relu" && !residual;
    context->save_for_backward({input, weight, from_output ? output : sums});
    return {output, sums};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const std::string activation = context->saved_data["activation"].toStringRef();
    Tensor grad_sums = grads[0];
    if (activation == "relu") grad_sums = at::threshold_backward(grads[0], saved[2], 0);
    if (activation == "gated")
      grad_sums = gate_backward_operator().call(grads[0], saved[2], context->saved_data["data_channels"].toInt());
    variable_list gradients = convolution_gradients(*context, grad_sums, saved[0], saved[1]);
    gradients.insert(gradients.begin(), 2, Tensor());  // those of the call and the activation
    gradients.push_back(context->saved_data["residual"].toBool() ? grads[0] : Tensor());
    return gradients;
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

std::tuple<Tensor, Tensor> masked_conv2d_fused(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                                               const OptionalTensor& bias, const OptionalTensor& residual,
                                               std::string_view mask_type, int64_t data_channels,
                                               at::IntArrayRef dilation, std::string_view activation,
                                               bool save_for_backward) {
  if (!(needs_graph(input) || needs_graph(weight) || needs_graph(bias) || needs_graph(residual))) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return fused_operator().redispatch(keys & c10::after_autograd_keyset, input, weight, bias, residual, mask_type,
                                       data_channels, dilation, activation, save_for_backward);
  }
  const variable_list outputs =
      MaskedConv2dFused::apply(Call{mask_type, data_channels, dilation}, activation, input, weight, bias, residual);
  // Sums are not returned to a caller who did not ask for them.
  return {outputs[0], save_for_backward ? outputs[1] : outputs[1].new_empty({0})};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("masked_conv2d", TORCH_FN(masked_conv2d));
  library.impl("masked_conv2d_fused", TORCH_FN(masked_conv2d_fused));
  library.impl("masked_conv2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn::ops
