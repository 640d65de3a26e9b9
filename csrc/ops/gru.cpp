// The operators gru and gru_backward: check, allocate, call the kernel.

#include "cpu/gru.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "ops/layer.h"

namespace fused_rnn::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> gru(const Tensor& input, const Tensor& h0, at::TensorList weights,
                                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                       bool save_states) {
  const RecurrentLayer layer =
      check_layer(3, input, h0, nullptr, weights, batch_sizes, lengths, Takes::kStoredMatrices);
  const RecurrentSizes& s = layer.sizes;
  Tensor output = layer.empty(layer.kernel_output_shape);
  Tensor h_n = layer.empty(h0.sizes());
  Tensor gates = layer.empty_gates(save_states);
  if (s.steps.batch > 0)
    for_type(layer.compute, [&](auto zero) {
      using T = decltype(zero);
      RecurrentForwardParams<T> params = {};
      params.sizes = s;
      for (int64_t d = 0; d < s.directions; ++d) params.weights[d] = layer.stored_weights_of<T>(d);
      params.pairs = layer.type == at::kBFloat16 && multiplies_pairs();
      params.input = layer.input.template const_data_ptr<T>();
      params.h0 = layer.h0.template const_data_ptr<T>();
      params.output = output.mutable_data_ptr<T>();
      params.h_n = h_n.mutable_data_ptr<T>();
      params.gates = pointer<T>(gates);
      FUSED_RNN_CPU_CALL(gru, params);
    });
  return {layer.with_padding(layer.for_caller(output)), layer.unsorted(layer.for_caller(h_n)), gates};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> gru_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const Tensor& input, const Tensor& h0,
    at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const Tensor& output,
    const Tensor& gates, bool input_grad, bool state_grad, bool weight_grad) {
  const RecurrentLayer layer = check_layer(3, input, h0, nullptr, weights, batch_sizes, lengths);
  const RecurrentSizes& s = layer.sizes;
  const int64_t rows = s.steps.rows();
  const Tensor kernel_output = layer.saved_rows(output, "output", layer.output_shape, 0);
  const Tensor kernel_gates = layer.saved_gates(gates);
  const Tensor kernel_grad = layer.saved_rows(grad_output, "grad_output", layer.output_shape, 0);
  Tensor grad_input = input_grad ? layer.empty(layer.input.sizes()) : layer.empty({0});
  Tensor grad_h0 = layer.writable(grad_h_n, h0.sizes());
  Tensor grad_gates = layer.empty({s.directions, rows, 4 * s.hidden_size});
  std::vector<Tensor> grad_weights = empty_weight_gradients(layer, weight_grad);
  for_type(layer.compute, [&](auto zero) {
    using T = decltype(zero);
    RecurrentBackwardParams<T> params = {};
    params.sizes = s;
    for (int64_t d = 0; d < s.directions; ++d) {
      params.weights[d] = layer.weights_of<T>(d);
      params.grad_weights[d] = gradients_of<T>(layer, grad_weights, d);
    }
    params.input = layer.input.template const_data_ptr<T>();
    params.h0 = layer.h0.template const_data_ptr<T>();
    params.output = kernel_output.const_data_ptr<T>();
    params.gates = kernel_gates.const_data_ptr<T>();
    params.grad_output = pointer<T>(kernel_grad);
    params.grad_h = grad_h0.mutable_data_ptr<T>();
    params.grad_gates = grad_gates.mutable_data_ptr<T>();
    params.grad_input = pointer<T>(grad_input);
    params.weight_grad = weight_grad;
    FUSED_RNN_CPU_CALL(gru_backward, params);
  });
  for (Tensor& gradient : grad_weights) gradient = layer.for_caller(gradient);
  return {layer.input_gradient(grad_input, input_grad), layer.state_gradient(grad_h0, state_grad),
          std::move(grad_weights)};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("gru", gru);
  library.impl("gru_backward", gru_backward);
}

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("gru", torch::autograd::autogradNotImplementedFallback());
  library.impl("gru_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn::ops
