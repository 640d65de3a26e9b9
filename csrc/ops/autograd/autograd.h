// What the gradients of the operators have in common. They serve calls of torch.ops.fused_rnn.* themselves, such as
// those in a traced or exported model, and are of first order: the backward operators raise an error if they are
// differentiated. fused_rnn.autograd, which the layers use, has the other orders and the rules of torch.func.

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace fused_rnn::ops {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = c10::List<OptionalTensor>;

// Returns an operator of this package, to be called through the dispatcher.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// The operator recurrent; see fused_rnn/ops/recurrent.py.
using RecurrentResults = std::tuple<Tensor, std::vector<Tensor>, Tensor, std::vector<Tensor>>;
using RecurrentSignature = RecurrentResults(std::string_view cell, const Tensor& input, at::TensorList states,
                                            at::TensorList weights, const OptionalTensor& batch_sizes,
                                            const OptionalTensor& lengths, bool save_for_backward,
                                            const OptionalTensor& resets, const OptionalTensor& reset_h,
                                            const OptionalTensor& reset_c);
using RecurrentOperator = c10::TypedOperatorHandle<RecurrentSignature>;
const RecurrentOperator& recurrent_operator();

// Whether a result that is computed from `tensor` needs a gradient. A tensor with a tangent counts too, since only an
// autograd function raises the error that there is no forward-mode derivative.
inline bool needs_graph(const Tensor& tensor) {
  return tensor.defined() &&
         ((at::GradMode::is_enabled() && tensor.requires_grad()) || tensor._fw_grad(/*level=*/0).defined());
}
inline bool needs_graph(const OptionalTensor& tensor) { return tensor && needs_graph(*tensor); }
inline bool needs_graph(at::TensorList tensors) {
  for (const Tensor& tensor : tensors)
    if (needs_graph(tensor)) return true;
  return false;
}

}  // namespace fused_rnn::ops
