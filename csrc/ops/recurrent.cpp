// The operators recurrent and recurrent_backward: they check their arguments and run the layer on the input's device.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>

#include "ops/layer.h"
#include "ops/recurrent_cpu.h"

#ifdef FUSED_RNN_CUDA
#include "ops/cuda/recurrent.h"
#endif

namespace fused_rnn::ops {
namespace {

// Returns the results of a step without hidden units, which are all empty, so that no kernel has to know of such a
// step.
RecurrentOutputs forward_without_units(const RecurrentLayer& layer, bool save_for_backward) {
  const at::ScalarType accumulated = layer.accumulation_type();
  const auto saved = [&](at::IntArrayRef shape, at::ScalarType type) {
    return at::empty(save_for_backward ? shape : at::IntArrayRef{0}, layer.input.options().dtype(type));
  };
  RecurrentOutputs outputs;
  outputs.output = at::empty(layer.output_shape(), layer.input.options());
  for (const Tensor& state : layer.states) outputs.states.push_back(at::zeros_like(state));
  outputs.gates = saved(layer.gates_shape(), layer.input.is_cuda() ? layer.type : saved_on_cpu(layer.type));
  for (size_t i = 1; i < layer.states.size(); ++i) outputs.history.push_back(saved(layer.history_shape(), accumulated));
  return outputs;
}

// Returns the gradients of such a step: that of the input is zero, all others are empty.
RecurrentInputGradients backward_without_units(const RecurrentLayer& layer, Wanted wanted) {
  const auto gradient = [&](const Tensor& tensor, bool is_wanted) {
    return is_wanted ? at::zeros_like(tensor, at::MemoryFormat::Contiguous) : at::empty({0}, tensor.options());
  };
  RecurrentInputGradients result;
  result.input = gradient(layer.input, wanted.input);
  for (const Tensor& state : layer.states) result.states.push_back(gradient(state, wanted.states));
  if (wanted.weights) {
    result.weights[0] = layer.weights[0];
    result.weights[0].for_each([&](Tensor& weight) { weight = gradient(weight, true); });
  }
  return result;
}

RecurrentOutputs forward(const RecurrentLayer& layer, bool save_for_backward) {
  if (layer.without_units()) return forward_without_units(layer, save_for_backward);
#ifdef FUSED_RNN_CUDA
  if (layer.input.is_cuda()) return forward_on_cuda(layer, save_for_backward);
#endif
  return forward_on_cpu(layer, save_for_backward);
}

RecurrentInputGradients backward(const RecurrentLayer& layer, const RecurrentGradients& gradients,
                                 const RecurrentSaved& saved, Wanted wanted) {
  if (layer.without_units()) return backward_without_units(layer, wanted);
#ifdef FUSED_RNN_CUDA
  if (layer.input.is_cuda()) return backward_on_cuda(layer, gradients, saved, wanted);
#endif
  return backward_on_cpu(layer, gradients, saved, wanted);
}

// Returns those of the two tensors that are given. The schema has no list of them, since AOTInductor cannot pass an
// empty one.
std::vector<Tensor> given_of(const OptionalTensor& first, const OptionalTensor& second) {
  std::vector<Tensor> given;
  for (const OptionalTensor* tensor : {&first, &second})
    if (*tensor) given.push_back(**tensor);
  return given;
}

// Calls check() and adds a mark to the message of any error it raises, by which fused_rnn.functional distinguishes
// arguments that the operator refuses from other errors.
template <typename Body>
auto mark_refusal(const Body& check) {
  try {
    return check();
  } catch (c10::Error& error) {
    error.add_context("refused by fused_rnn::recurrent");
    throw;
  }
}

std::tuple<Tensor, std::vector<Tensor>, Tensor, std::vector<Tensor>> recurrent(
    std::string_view cell, const Tensor& input, at::TensorList states, at::TensorList weights,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool save_for_backward,
    const OptionalTensor& resets, const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  const RecurrentLayer layer = mark_refusal([&] {
    return check_layer(cell, input, states, weights, batch_sizes, lengths, resets, given_of(reset_h, reset_c));
  });
  RecurrentOutputs outputs = forward(layer, save_for_backward);
  return {std::move(outputs.output), std::move(outputs.states), std::move(outputs.gates), std::move(outputs.history)};
}

// Returns an optional tensor, with its shape, device and dtype checked; undefined if there is none.
Tensor checked(const OptionalTensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType type,
               const RecurrentLayer& layer) {
  if (!tensor) return Tensor();
  check_shape(*tensor, name, shape);
  TORCH_CHECK(tensor->device() == layer.input.device(), name, " is on ", tensor->device(), ", but input is on ",
              layer.input.device());
  TORCH_CHECK(tensor->scalar_type() == type, name, " has dtype ", tensor->scalar_type(), ", but must have ", type,
              " for an input of ", layer.type);
  return *tensor;
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> recurrent_backward(
    std::string_view cell, const OptionalTensor& grad_output, const OptionalTensors& grad_final_states,
    const OptionalTensors& grad_history, const Tensor& input, at::TensorList states, at::TensorList weights,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& output, const Tensor& gates,
    at::TensorList history, bool input_grad, bool state_grad, bool weight_grad, const OptionalTensor& resets,
    const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  const RecurrentLayer layer =
      check_layer(cell, input, states, weights, batch_sizes, lengths, resets, given_of(reset_h, reset_c));
  const auto cell_states = static_cast<size_t>(layer.cell.cell_states());
  TORCH_CHECK(
      grad_final_states.size() == states.size() && grad_history.size() == cell_states && history.size() == cell_states,
      "grad_final_states, grad_history and history must have ", states.size(), ", ", cell_states, " and ", cell_states,
      " tensors, got ", grad_final_states.size(), ", ", grad_history.size(), " and ", history.size());
  RecurrentGradients gradients;
  RecurrentSaved saved;
  gradients.output = checked(grad_output, "grad_output", layer.output_shape(), layer.type, layer);
  for (size_t i = 0; i < states.size(); ++i)
    gradients.states.push_back(
        checked(grad_final_states[i], "a tensor of grad_final_states", states[i].sizes(), layer.type, layer));
  TORCH_CHECK(output || layer.sizes.steps.time == 1, "output may be None only if there is one time step, got ",
              layer.sizes.steps.time);
  saved.output = checked(output, "output", layer.output_shape(), layer.type, layer);
  // On a GPU gates, and the history of a layer of many units, are saved in the dtype of the layer.
  const auto saved_type = [&](const Tensor& tensor, at::ScalarType on_cpu) {
    return tensor.scalar_type() == layer.type ? layer.type : on_cpu;
  };
  saved.gates = checked(gates, "gates", layer.gates_shape(), saved_type(gates, saved_on_cpu(layer.type)), layer);
  for (size_t i = 0; i < cell_states; ++i) {
    const std::vector<int64_t> shape = layer.history_shape();
    const at::ScalarType type = saved_type(history[i], layer.accumulation_type());
    gradients.history.push_back(checked(grad_history[i], "a tensor of grad_history", shape, type, layer));
    saved.history.push_back(checked(history[i], "a tensor of history", shape, type, layer));
  }
  RecurrentInputGradients result = backward(layer, gradients, saved, {input_grad, state_grad, weight_grad});
  std::vector<Tensor> of_weights;
  if (weight_grad)
    for (int64_t d = 0; d < layer.sizes.directions; ++d)
      result.weights[d].for_each([&](const Tensor& gradient) { of_weights.push_back(gradient); });
  result.states.insert(result.states.end(), result.reset_states.begin(), result.reset_states.end());
  return {std::move(result.input), std::move(result.states), std::move(of_weights)};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("recurrent", recurrent);
  library.impl("recurrent_backward", recurrent_backward);
}

#ifdef FUSED_RNN_CUDA
TORCH_LIBRARY_IMPL(fused_rnn, CUDA, library) {
  library.impl("recurrent", recurrent);
  library.impl("recurrent_backward", recurrent_backward);
}
#endif

}  // namespace fused_rnn::ops
