// Checks of a recurrent layer's tensors, for LSTM and GRU alike.

#include "ops/layer.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sub.h>

#include <cstring>

namespace fused_rnn::ops {
namespace {

void check_tensor(const Tensor& tensor, const char* name, int64_t dimensions, const Tensor& input) {
  TORCH_CHECK(tensor.dim() == dimensions, name, " must have ", dimensions, " dimensions, got shape ", tensor.sizes());
  TORCH_CHECK(tensor.device() == input.device(), name, " is on ", tensor.device(), ", but input is on ",
              input.device());
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, " has dtype ", tensor.scalar_type(),
              ", but input has dtype ", input.scalar_type());
}

void check_shape(const Tensor& tensor, const char* name, at::IntArrayRef expected) {
  TORCH_CHECK(tensor.sizes() == expected, name, " must have shape ", expected, ", got ", tensor.sizes());
}

// The steps of the layer, packed or padded; also sets layer.batch_sizes and layer.first_rows.
Steps check_steps(RecurrentLayer& layer, const Tensor& input, const OptionalTensor& batch_sizes, int64_t batch) {
  if (!batch_sizes) {
    TORCH_CHECK(input.size(-2) == batch, "h0 must have input's batch size ", input.size(-2), ", got ", batch);
    return {input.dim() == 2 ? 1 : input.size(0), batch, nullptr, nullptr};
  }
  const Tensor& sizes = *batch_sizes;
  TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.is_cpu(),
              "batch_sizes must be a one-dimensional int64 tensor on the CPU");
  layer.batch_sizes = sizes.contiguous();
  const int64_t* begin = layer.batch_sizes.const_data_ptr<int64_t>();
  int64_t rows = 0, previous = batch;
  for (const int64_t* size = begin; size != begin + layer.batch_sizes.numel(); ++size) {
    TORCH_CHECK(0 <= *size && *size <= previous, "batch_sizes must lie between 0 and the batch size ", batch,
                " and never increase, got ", previous, " before ", *size);
    rows += previous = *size;
  }
  TORCH_CHECK(input.size(0) == rows, "input must have as many rows as batch_sizes add up to, ", rows, ", got ",
              input.size(0));
  layer.first_rows = at::sub(at::cumsum(layer.batch_sizes, 0), layer.batch_sizes);
  return {sizes.size(0), batch, begin, layer.first_rows.const_data_ptr<int64_t>()};
}

void check_lengths(const Tensor& lengths, const Tensor& input) {
  const int64_t time = input.size(0), batch = input.size(1);
  TORCH_CHECK(lengths.dim() == 1 && lengths.size(0) == batch && lengths.scalar_type() == at::kLong,
              "lengths must be int64 of shape [batch] = [", batch, "], got ", lengths.scalar_type(), " of shape ",
              lengths.sizes());
  TORCH_CHECK(lengths.device() == input.device(), "lengths is on ", lengths.device(), ", but input is on ",
              input.device());
  if (!lengths.is_cpu()) return;
  const Tensor dense = lengths.contiguous();
  const int64_t* begin = dense.const_data_ptr<int64_t>();
  for (const int64_t* length = begin; length != begin + batch; ++length)
    TORCH_CHECK_VALUE(0 <= *length && *length <= time, "lengths must lie between 0 and the number of time steps, ",
                      time, ", got ", *length);
}

// Lets the kernels see a padded batch as a packed one.
void pack(RecurrentLayer& layer, const Tensor& lengths) {
  Steps& steps = layer.sizes.steps;
  const Tensor order = at::arange(steps.time * steps.batch, lengths.options()).view({steps.time, steps.batch});
  const auto [by_length, sequences] = lengths.sort(/*stable=*/true, /*dim=*/0, /*descending=*/true);
  const Tensor running = by_length.gt(at::arange(steps.time, lengths.options()).unsqueeze(1));  // [time, batch]
  layer.sequences = sequences;
  layer.rows = order.index_select(1, sequences).masked_select(running);
  layer.batch_sizes = running.sum(1);
  layer.first_rows = at::sub(at::cumsum(layer.batch_sizes, 0), layer.batch_sizes);
  steps.batch_sizes = layer.batch_sizes.const_data_ptr<int64_t>();
  steps.first_rows = layer.first_rows.const_data_ptr<int64_t>();
}

void check_weights(const RecurrentLayer& layer, int64_t gates, at::TensorList weights, const Tensor& input) {
  const auto& s = layer.sizes;
  for (int64_t d = 0; d < s.directions; ++d) {
    const Tensor* w = weights.data() + d * layer.weights_per_direction;
    const auto check = [&](int64_t i, const char* name, at::IntArrayRef shape) {
      check_tensor(w[i], name, static_cast<int64_t>(shape.size()), input);
      check_shape(w[i], name, shape);
    };
    check(0, "weight_ih", {gates * s.hidden_size, s.input_size});
    check(1, "weight_hh", {gates * s.hidden_size, s.output_size});
    if (layer.biased) check(2, "bias_ih", {gates * s.hidden_size});
    if (layer.biased) check(3, "bias_hh", {gates * s.hidden_size});
    if (layer.projected) check(layer.biased ? 4 : 2, "weight_hr", {s.output_size, s.hidden_size});
  }
}

}  // namespace

RecurrentLayer check_layer(int64_t gates, const Tensor& input, const Tensor& h0, const Tensor* c0,
                           at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                           Takes takes) {
  RecurrentLayer layer;
  layer.type = input.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(
      layer.type == at::kFloat || layer.type == at::kDouble || layer.type == at::kBFloat16 || layer.type == at::kHalf,
      "input must be float32, float64, bfloat16 or float16, got ", layer.type);
  layer.compute = layer.type == at::kDouble || takes == Takes::kStored ? layer.type : at::kFloat;
  TORCH_CHECK(!batch_sizes || !lengths, "lengths are for padded input, batch_sizes for packed input: give one of both");
  const bool one_step = h0.dim() == 2;
  TORCH_CHECK(!one_step || (!batch_sizes && !lengths),
              "one step, with h0 of 2 dimensions, has no batch_sizes or lengths");
  check_tensor(input, "input", one_step || batch_sizes ? 2 : 3, input);
  check_tensor(h0, "h0", one_step ? 2 : 3, input);
  const int64_t directions = one_step ? 1 : h0.size(0), batch = h0.size(-2), output_size = h0.size(-1);
  TORCH_CHECK(directions == 1 || directions == 2, "h0 must have 1 or 2 directions, got shape ", h0.sizes());
  int64_t hidden_size = output_size;
  if (c0 != nullptr) {
    check_tensor(*c0, "c0", h0.dim(), input);
    hidden_size = c0->size(-1);
    TORCH_CHECK(c0->sizes().slice(0, h0.dim() - 1) == h0.sizes().slice(0, h0.dim() - 1), "c0 must have shape ",
                h0.sizes(), " but for the last dimension, got ", c0->sizes());
  }
  const auto count = static_cast<int64_t>(weights.size());
  layer.weights_per_direction = count / directions;
  layer.biased = layer.weights_per_direction >= 4;
  layer.projected = layer.weights_per_direction % 2 == 1;
  const bool expected = layer.weights_per_direction >= 2 && layer.weights_per_direction <= 5;
  TORCH_CHECK(count % directions == 0 && expected && (c0 != nullptr || !layer.projected),
              "weights must be weight_ih, weight_hh, with biases bias_ih, bias_hh, with a projection (LSTM only) "
              "weight_hr, for each of ",
              directions, " directions; got ", count, " tensors");
  TORCH_CHECK(layer.projected || output_size == hidden_size,
              "h0 and c0 must have the same size without a projection, got ", output_size, " and ", hidden_size);
  const Steps steps = check_steps(layer, input, batch_sizes, batch);
  layer.sizes = {steps, input.size(-1), hidden_size, output_size, directions, at::get_num_threads()};
  TORCH_CHECK(steps.time > 0, "input must have at least one time step");
  TORCH_CHECK(hidden_size > 0 && output_size > 0, "the states must not be empty, got shape ", h0.sizes());
  check_weights(layer, gates, weights, input);
  if (lengths) check_lengths(*lengths, input);
  if (lengths && takes != Takes::kStored) pack(layer, *lengths);

  layer.input = layer.for_kernel(layer.without_padding(input));
  layer.output_shape = input.sizes().vec();
  layer.kernel_output_shape = layer.input.sizes().vec();
  layer.output_shape.back() = layer.kernel_output_shape.back() = directions * output_size;
  layer.h0 = layer.for_kernel(layer.sorted(h0));
  if (c0 != nullptr) layer.c0 = layer.for_kernel(layer.sorted(*c0));
  layer.weights.reserve(weights.size());
  for (const Tensor& weight : weights)
    layer.weights.push_back(takes != Takes::kStoredMatrices || weight.dim() == 1 ? layer.for_kernel(weight)
                                                                                 : weight.contiguous());
  return layer;
}

Tensor RecurrentLayer::without_padding(const Tensor& tensor, int64_t dim) const {
  if (!rows.defined()) return tensor;
  return (dim == 0 ? tensor.flatten(0, 1) : tensor).index_select(dim, rows);
}

Tensor RecurrentLayer::with_padding(const Tensor& tensor, int64_t dim) const {
  if (!rows.defined()) return tensor;
  const Steps& steps = sizes.steps;
  const int64_t first = dim == 0 ? steps.time : sizes.directions, second = dim == 0 ? steps.batch : caller_rows();
  const Tensor padded = at::zeros({first, second, tensor.size(-1)}, tensor.options());
  (dim == 0 ? padded.flatten(0, 1) : padded).index_copy_(dim, rows, tensor);
  return padded;
}

Tensor RecurrentLayer::unsorted(const Tensor& state) const {
  return sequences.defined() ? at::empty_like(state).index_copy_(1, sequences, state) : state;
}

Tensor RecurrentLayer::writable(const OptionalTensor& tensor, at::IntArrayRef shape) const {
  if (!tensor) return at::zeros(shape, options());
  check_shape(*tensor, "the gradient of a state", shape);
  if (sequences.defined() || tensor->scalar_type() != compute || !tensor->is_contiguous())
    return sorted(*tensor).to(compute, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  Tensor copy = empty(shape);
  if (copy.numel() > 0) std::memcpy(copy.mutable_data_ptr(), tensor->const_data_ptr(), copy.nbytes());
  return copy;
}

Tensor RecurrentLayer::saved_rows(const OptionalTensor& tensor, const char* name, at::IntArrayRef shape,
                                  int64_t dim) const {
  if (!tensor) return Tensor();
  check_shape(*tensor, name, shape);
  return for_kernel(without_padding(*tensor, dim));
}

Tensor RecurrentLayer::input_gradient(const Tensor& gradient, bool wanted) const {
  return for_caller(wanted ? with_padding(gradient) : empty({0}));
}

Tensor RecurrentLayer::state_gradient(const Tensor& gradient, bool wanted) const {
  return for_caller(wanted ? unsorted(gradient) : empty({0}));
}

Tensor RecurrentLayer::empty_gates(bool wanted) const {
  if (!wanted) return empty({0});
  const int64_t width = 4 * sizes.hidden_size;
  Tensor gates = empty({sizes.directions, caller_rows(), width});
  const int64_t used = sizes.directions * sizes.steps.rows() * width;
  if (rows.defined()) gates.flatten().narrow(0, used, gates.numel() - used).zero_();
  return gates;
}

Tensor RecurrentLayer::saved_gates(const Tensor& gates) const {
  check_shape(gates, "gates", {sizes.directions, caller_rows(), 4 * sizes.hidden_size});
  return for_kernel(gates);
}

std::vector<Tensor> empty_weight_gradients(const RecurrentLayer& layer, bool wanted) {
  std::vector<Tensor> gradients;
  if (wanted)
    for (const Tensor& weight : layer.weights) gradients.push_back(layer.empty(weight.sizes()));
  return gradients;
}

}  // namespace fused_rnn::ops
