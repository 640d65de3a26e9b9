// The gradient of the operator recurrent.

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "ops/autograd/autograd.h"

namespace fused_rnn::ops {
namespace {

using Gradients = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;

const auto& backward_operator() {
  static const auto found =
      find_operator<Gradients(std::string_view, const OptionalTensor&, const OptionalTensors&, const OptionalTensors&,
                              const Tensor&, at::TensorList, at::TensorList, const OptionalTensor&,
                              const OptionalTensor&, const OptionalTensor&, const Tensor&, at::TensorList, bool, bool,
                              bool, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&)>(
          "fused_rnn::recurrent_backward");
  return found;
}

// Arguments of the operator that have no gradient.
struct Call {
  std::string_view cell;
  const OptionalTensor &batch_sizes, &lengths, &resets;

  // Whether the layer has a single step, whose backward pass does not read the output; so it is not saved, and the
  // caller may change it in place.
  bool one_step(const Tensor& input, const Tensor& h0) const {
    if (h0.dim() == 2) return true;
    return TORCH_GUARD_OR_FALSE((batch_sizes ? *batch_sizes : input).sym_size(0).sym_eq(1));
  }
};

variable_list slice(const variable_list& tensors, int64_t begin, int64_t end) {
  return {tensors.begin() + begin, tensors.begin() + end};
}

OptionalTensor optional(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

OptionalTensors optional(const variable_list& tensors) {
  OptionalTensors result;
  for (const Tensor& tensor : tensors) result.push_back(optional(tensor));
  return result;
}

// Returns a tensor of a list; none behind its end.
OptionalTensor at_index(at::TensorList tensors, size_t index) {
  return index < tensors.size() ? OptionalTensor(tensors[index]) : std::nullopt;
}

class Recurrent : public torch::autograd::Function<Recurrent> {
 public:
  // Returns output, final states, gates and history in one list.
  static variable_list forward(AutogradContext* context, const Call& call, const Tensor& input, at::TensorList states,
                               at::TensorList reset_states, at::TensorList weights) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, finals, gates, history] =
        recurrent_operator().call(call.cell, input, states, weights, call.batch_sizes, call.lengths, true, call.resets,
                                  at_index(reset_states, 0), at_index(reset_states, 1));
    context->set_materialize_grads(false);
    context->mark_non_differentiable({gates});
    context->saved_data["cell"] = std::string(call.cell);
    context->saved_data["states"] = static_cast<int64_t>(states.size());
    context->saved_data["reset_states"] = static_cast<int64_t>(reset_states.size());
    context->saved_data["weights"] = static_cast<int64_t>(weights.size());
    variable_list saved = {call.batch_sizes.value_or(Tensor()),
                           call.lengths.value_or(Tensor()),
                           call.resets.value_or(Tensor()),
                           call.one_step(input, states[0]) ? Tensor() : output,
                           gates,
                           input};
    for (const at::TensorList more : {states, reset_states, weights, at::TensorList(history)})
      saved.insert(saved.end(), more.begin(), more.end());
    context->save_for_backward(saved);
    variable_list outputs = {output};
    outputs.insert(outputs.end(), finals.begin(), finals.end());
    outputs.push_back(gates);
    outputs.insert(outputs.end(), history.begin(), history.end());
    return outputs;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const std::string cell = context->saved_data["cell"].toStringRef();
    const int64_t states = context->saved_data["states"].toInt(), weights = context->saved_data["weights"].toInt();
    const int64_t reset_states = context->saved_data["reset_states"].toInt(), all_states = states + reset_states;
    const variable_list saved = context->get_saved_variables();
    constexpr int64_t kFirstState = 6;
    const int64_t first_reset_state = kFirstState + states, first_weight = first_reset_state + reset_states;
    const int64_t first_history = first_weight + weights;
    // The inputs of forward that have gradients are counted without the call.
    const auto needs = [&](int64_t begin, int64_t count) {
      bool any = false;
      for (int64_t i = begin; i < begin + count; ++i) any = any || context->needs_input_grad(static_cast<size_t>(i));
      return any;
    };
    const bool input_grad = needs(0, 1), state_grad = needs(1, all_states),
               weight_grad = needs(1 + all_states, weights);
    const variable_list replacing = slice(saved, first_reset_state, first_weight);
    const int64_t first_grad_history = 2 + states;  // behind output, states and gates
    auto [grad_input, grad_states, grad_weights] = backward_operator().call(
        cell, optional(grads[0]), optional(slice(grads, 1, 1 + states)),
        optional(slice(grads, first_grad_history, static_cast<int64_t>(grads.size()))), saved[5],
        slice(saved, kFirstState, first_reset_state), slice(saved, first_weight, first_history), optional(saved[0]),
        optional(saved[1]), optional(saved[3]), saved[4],
        slice(saved, first_history, static_cast<int64_t>(saved.size())), input_grad, state_grad, weight_grad,
        optional(saved[2]), at_index(replacing, 0), at_index(replacing, 1));
    grad_states.resize(static_cast<size_t>(all_states));
    grad_weights.resize(static_cast<size_t>(weights));
    variable_list result = {Tensor(), grad_input};
    result.insert(result.end(), grad_states.begin(), grad_states.end());
    result.insert(result.end(), grad_weights.begin(), grad_weights.end());
    for (int64_t i = 1; i < static_cast<int64_t>(result.size()); ++i)
      if (!needs(i - 1, 1)) result[static_cast<size_t>(i)] = Tensor();
    return result;
  }
};

RecurrentResults recurrent(c10::DispatchKeySet keys, std::string_view cell, const Tensor& input, at::TensorList states,
                           at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                           bool save_for_backward, const OptionalTensor& resets, const OptionalTensor& reset_h,
                           const OptionalTensor& reset_c) {
  if (states.empty() || !(needs_graph(input) || needs_graph(states) || needs_graph(weights) || needs_graph(reset_h) ||
                          needs_graph(reset_c))) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return recurrent_operator().redispatch(keys & c10::after_autograd_keyset, cell, input, states, weights, batch_sizes,
                                           lengths, save_for_backward, resets, reset_h, reset_c);
  }
  variable_list reset_states;
  for (const OptionalTensor* given : {&reset_h, &reset_c})
    if (*given) reset_states.push_back(**given);
  const variable_list outputs =
      Recurrent::apply(Call{cell, batch_sizes, lengths, resets}, input, states, at::TensorList(reset_states), weights);
  const auto finals = static_cast<int64_t>(states.size()), count = static_cast<int64_t>(outputs.size());
  RecurrentResults result = {outputs[0], slice(outputs, 1, 1 + finals), outputs[1 + states.size()],
                             slice(outputs, 2 + finals, count)};
  if (save_for_backward) return result;
  // What only the backward pass needs is not returned to a caller who did not ask for it.
  std::get<2>(result) = std::get<2>(result).new_empty({0});
  for (Tensor& values : std::get<3>(result)) values = values.detach().new_empty({0});
  return result;
}

}  // namespace

const RecurrentOperator& recurrent_operator() {
  static const RecurrentOperator found = find_operator<RecurrentSignature>("fused_rnn::recurrent");
  return found;
}

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("recurrent", TORCH_FN(recurrent));
  library.impl("recurrent_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn::ops
