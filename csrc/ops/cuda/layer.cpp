// The operators lstm, gru and their backward on a GPU: check, allocate, call the kernels.

#include "ops/cuda/layer.h"

#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

namespace fused_rnn::ops {
namespace {

cuda::Element element_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return cuda::Element::kFloat32;
    case at::kDouble:
      return cuda::Element::kFloat64;
    case at::kBFloat16:
      return cuda::Element::kBFloat16;
    default:
      return cuda::Element::kFloat16;
  }
}

// The input's part of the gates' sums, without biases, for all steps.
void multiply_input(const CudaLayer& cuda, const Tensor& gates) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const Tensor input = cuda.layer.input.reshape({-1, s.input_size});
  for (int64_t d = 0; d < s.directions; ++d) {
    Tensor part = gates.select(0, d).narrow(1, 0, cuda.gates * s.hidden_size);
    cuda.multiply(part, input, cuda.weight(d, 0).t());
  }
}

CudaStates forward(cuda::Cell cell, const RecurrentLayer& layer, const OptionalTensor& lengths, bool save) {
  const c10::DeviceGuard guard(layer.input.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const CudaLayer cuda(cell, layer, lengths);
  const RecurrentSizes& s = layer.sizes;
  const int64_t rows = s.steps.rows();
  CudaStates states;
  states.output = layer.empty(layer.output_shape);
  states.h_n = layer.empty(layer.h0.sizes());
  if (cuda.is_lstm()) states.c_n = layer.empty(layer.c0.sizes());
  if (save && cuda.is_lstm()) states.cells = cuda.empty_state({s.directions, rows, s.hidden_size});
  states.gates = layer.empty({s.directions, rows, 4 * s.hidden_size});
  if (s.steps.batch > 0) {
    const cuda::PersistentProblem problem = cuda.problem(/*backward=*/false);
    const PersistentPlan plan = cuda.plan(problem);
    if (plan.blocks > 0 || !cuda.precise()) multiply_input(cuda, states.gates);
    if (plan.blocks > 0)
      persistent_forward(cuda, plan, problem.hidden_size, states, save);
    else
      stepwise_forward(cuda, states, save);
  }
  if (!save) states.gates = layer.empty({0});
  if (!states.cells.defined()) states.cells = cuda.empty_state({0});
  return states;
}

// Runs the steps backwards: sets gradients.gates, and if they are wanted h0 and c0.
void steps_backward(const CudaLayer& cuda, const CudaStates& states, CudaGradients& gradients, bool state_wanted) {
  const cuda::PersistentProblem problem = cuda.problem(/*backward=*/true);
  const PersistentPlan plan = cuda.plan(problem);
  if (plan.blocks > 0 || state_wanted) {
    gradients.h0 = cuda.layer.empty(cuda.layer.h0.sizes());
    if (cuda.is_lstm()) gradients.c0 = cuda.layer.empty(cuda.layer.c0.sizes());
  }
  const RecurrentSizes& s = cuda.layer.sizes;
  const int64_t width = (plan.blocks == 0 && cuda.precise() ? 8 : 4) * s.hidden_size;
  gradients.gates = cuda.layer.empty({s.directions, cuda.steps.rows, width});
  if (s.steps.batch == 0) return;
  if (plan.blocks > 0)
    persistent_backward(cuda, plan, problem.hidden_size, states, gradients);
  else
    stepwise_backward(cuda, states, gradients);
}

struct Wanted {
  bool input, state, weight;
};

// Returns the gradients of input and weights; sets those of the states in `gradients`.
std::pair<Tensor, std::vector<Tensor>> backward(cuda::Cell cell, const RecurrentLayer& layer,
                                                const OptionalTensor& lengths, const CudaStates& states,
                                                CudaGradients& gradients, Wanted wanted) {
  const c10::DeviceGuard guard(layer.input.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const CudaLayer cuda(cell, layer, lengths);
  steps_backward(cuda, states, gradients, wanted.state);
  Tensor grad_input = layer.empty({0});
  if (wanted.input) grad_input = input_gradient(cuda, gradients);
  std::vector<Tensor> grad_weights;
  if (wanted.weight) grad_weights = weight_gradients(cuda, states, gradients);
  if (!wanted.state) {
    gradients.h0 = layer.empty({0});
    if (cuda.is_lstm()) gradients.c0 = layer.empty({0});
  }
  return {grad_input, grad_weights};
}

// A tensor that a backward is given, dense; undefined if it is not there.
Tensor given(const OptionalTensor& tensor, const char* name, at::IntArrayRef shape) {
  if (!tensor) return Tensor();
  TORCH_CHECK(tensor->sizes() == shape, name, " must have shape ", shape, ", got ", tensor->sizes());
  return tensor->contiguous();
}

// What has no time and no direction, [batch, size], as a sequence of one step.
Tensor as_sequence(const Tensor& tensor) { return tensor.unsqueeze(0); }
OptionalTensor as_sequence(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(tensor->unsqueeze(0)) : tensor;
}
// The way back; what was not wanted, of shape [0], stays.
Tensor as_step(const Tensor& tensor) { return tensor.dim() == 3 ? tensor.squeeze(0) : tensor; }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm(const Tensor& input, const Tensor& h0, const Tensor& c0,
                                                        at::TensorList weights, const OptionalTensor& batch_sizes,
                                                        const OptionalTensor& lengths, bool save_states) {
  if (h0.dim() == 2) {
    const auto [output, h_n, c_n, gates, cells] =
        lstm(as_sequence(input), as_sequence(h0), as_sequence(c0), weights, batch_sizes, lengths, save_states);
    return {as_step(output), as_step(h_n), as_step(c_n), gates, cells};
  }
  const RecurrentLayer layer = check_layer(4, input, h0, &c0, weights, batch_sizes, lengths, Takes::kStored);
  CudaStates states = forward(cuda::Cell::kLSTM, layer, lengths, save_states);
  return {states.output, states.h_n, states.c_n, states.gates, states.cells};
}

std::tuple<Tensor, Tensor, Tensor> gru(const Tensor& input, const Tensor& h0, at::TensorList weights,
                                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                       bool save_states) {
  if (h0.dim() == 2) {
    const auto [output, h_n, gates] =
        gru(as_sequence(input), as_sequence(h0), weights, batch_sizes, lengths, save_states);
    return {as_step(output), as_step(h_n), gates};
  }
  const RecurrentLayer layer = check_layer(3, input, h0, nullptr, weights, batch_sizes, lengths, Takes::kStored);
  CudaStates states = forward(cuda::Cell::kGRU, layer, lengths, save_states);
  return {states.output, states.h_n, states.gates};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_cells, const Tensor& input, const Tensor& h0, const Tensor& c0, at::TensorList weights,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const Tensor& output, const Tensor& gates,
    const Tensor& cells, bool input_grad, bool state_grad, bool weight_grad) {
  if (h0.dim() == 2) {
    auto [grad_input, grad_h0, grad_c0, grad_weights] =
        lstm_backward(as_sequence(grad_output), as_sequence(grad_h_n), as_sequence(grad_c_n), grad_cells,
                      as_sequence(input), as_sequence(h0), as_sequence(c0), weights, batch_sizes, lengths,
                      as_sequence(output), gates, cells, input_grad, state_grad, weight_grad);
    return {as_step(grad_input), as_step(grad_h0), as_step(grad_c0), std::move(grad_weights)};
  }
  const RecurrentLayer layer = check_layer(4, input, h0, &c0, weights, batch_sizes, lengths, Takes::kStored);
  const RecurrentSizes& s = layer.sizes;
  const std::vector<int64_t> of_cells = {s.directions, s.steps.rows(), s.hidden_size};
  CudaStates states;
  states.output = given(output, "output", layer.output_shape);
  states.gates = given(gates, "gates", {s.directions, s.steps.rows(), 4 * s.hidden_size});
  states.cells = given(cells, "cells", of_cells);
  CudaGradients gradients;
  gradients.output = given(grad_output, "grad_output", layer.output_shape);
  gradients.cells = given(grad_cells, "grad_cells", of_cells);
  gradients.h_n = given(grad_h_n, "grad_h_n", h0.sizes());
  gradients.c_n = given(grad_c_n, "grad_c_n", c0.sizes());
  auto [grad_input, grad_weights] =
      backward(cuda::Cell::kLSTM, layer, lengths, states, gradients, {input_grad, state_grad, weight_grad});
  return {grad_input, gradients.h0, gradients.c0, std::move(grad_weights)};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> gru_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& input, const Tensor& h0,
    at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const Tensor& output,
    const Tensor& gates, bool input_grad, bool state_grad, bool weight_grad) {
  if (h0.dim() == 2) {
    auto [grad_input, grad_h0, grad_weights] =
        gru_backward(as_sequence(grad_output), as_sequence(grad_h_n), as_sequence(input), as_sequence(h0), weights,
                     batch_sizes, lengths, as_sequence(output), gates, input_grad, state_grad, weight_grad);
    return {as_step(grad_input), as_step(grad_h0), std::move(grad_weights)};
  }
  const RecurrentLayer layer = check_layer(3, input, h0, nullptr, weights, batch_sizes, lengths, Takes::kStored);
  const RecurrentSizes& s = layer.sizes;
  CudaStates states;
  states.output = given(output, "output", layer.output_shape);
  states.gates = given(gates, "gates", {s.directions, s.steps.rows(), 4 * s.hidden_size});
  CudaGradients gradients;
  gradients.output = given(grad_output, "grad_output", layer.output_shape);
  gradients.h_n = given(grad_h_n, "grad_h_n", h0.sizes());
  auto [grad_input, grad_weights] =
      backward(cuda::Cell::kGRU, layer, lengths, states, gradients, {input_grad, state_grad, weight_grad});
  return {grad_input, gradients.h0, std::move(grad_weights)};
}

}  // namespace

CudaLayer::CudaLayer(cuda::Cell cell, const RecurrentLayer& layer, const OptionalTensor& lengths)
    : layer(layer),
      cell(cell),
      element(element_of(layer.type)),
      state_type(layer.type == at::kDouble ? at::kDouble : at::kFloat),
      gates(cell == cuda::Cell::kLSTM ? 4 : 3),
      allow_tf32(layer.type == at::kFloat && tf32_allowed()),
      steps{layer.sizes.steps.time, layer.sizes.steps.batch, layer.sizes.steps.rows(), nullptr, nullptr, nullptr},
      stream(current_stream(layer.input.device())) {
  const at::Device device = layer.input.device();
  if (lengths) {
    this->lengths = lengths->contiguous();
    steps.lengths = this->lengths.const_data_ptr<int64_t>();
  }
  if (layer.batch_sizes.defined()) {
    // In one copy, from pinned memory: the CPU does not wait for the GPU to come to it.
    const Tensor both = at::empty({2, steps.time}, layer.batch_sizes.options().pinned_memory(device.is_cuda()));
    both.select(0, 0).copy_(layer.batch_sizes);
    both.select(0, 1).copy_(layer.first_rows);
    const Tensor there = both.to(device, /*non_blocking=*/true);
    batch_sizes = there.select(0, 0);
    first_rows = there.select(0, 1);
    steps.batch_sizes = batch_sizes.const_data_ptr<int64_t>();
    steps.first_rows = first_rows.const_data_ptr<int64_t>();
  }
}

Tensor CudaLayer::running() const {
  return at::arange(steps.time, lengths.options()).unsqueeze(1).lt(lengths).unsqueeze(2);
}

void check_launch(const char* error) {
  TORCH_CHECK(error == nullptr, "a CUDA kernel of fused_rnn could not be started: ", error);
}

bool tf32_allowed() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

cuda::PlanOverride& current_plan_override() {
  static cuda::PlanOverride plan_override;
  return plan_override;
}

TORCH_LIBRARY_IMPL(fused_rnn, CUDA, library) {
  library.impl("lstm", lstm);
  library.impl("lstm_backward", lstm_backward);
  library.impl("gru", gru);
  library.impl("gru_backward", gru_backward);
}

}  // namespace fused_rnn::ops
