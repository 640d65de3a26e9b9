// The checks of a recurrent layer's tensors, for all cells and devices.

#include "ops/layer.h"

#include <ATen/ops/cumsum.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros.h>

#include <atomic>

#include "ops/threads.h"

namespace fused_rnn::ops {

cells::Kind kind_of(std::string_view name) {
  constexpr int kCells = std::size(cells::kDescriptions);
  std::string names;
  int kind = 0;
  for (; kind < kCells && name != cells::kDescriptions[kind].name; ++kind)
    names += (kind == 0 ? "" : ", ") + std::string(cells::kDescriptions[kind].name);
  TORCH_CHECK_VALUE(kind < kCells, "cell must be one of ", names, ", got '", name, "'");
  return static_cast<cells::Kind>(kind);
}

namespace {

void check_tensor(const Tensor& tensor, const char* name, int64_t dimensions, const Tensor& input) {
  TORCH_CHECK(tensor.dim() == dimensions, name, " must have ", dimensions, " dimensions, got shape ", tensor.sizes());
  TORCH_CHECK(tensor.device() == input.device(), name, " is on ", tensor.device(), ", but input is on ",
              input.device());
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, " has dtype ", tensor.scalar_type(),
              ", but input has dtype ", input.scalar_type());
}

// Checks the initial states, and sets the layer's states and its sizes except the steps.
void check_states(RecurrentLayer& layer, at::TensorList states) {
  const auto expected_states = static_cast<size_t>(layer.cell.states);
  TORCH_CHECK(states.size() == expected_states, layer.cell.name, " has ", expected_states, " states, got ",
              states.size());
  const Tensor& h0 = states[0];
  check_tensor(h0, "h0", layer.one_step ? 2 : 3, layer.input);
  const int64_t directions = layer.one_step ? 1 : h0.size(0), output_size = h0.size(-1);
  TORCH_CHECK(directions == 1 || directions == 2, "h0 must have 1 or 2 directions, got shape ", h0.sizes());
  int64_t hidden_size = output_size;
  for (size_t i = 1; i < expected_states; ++i) {
    const Tensor& state = states[i];
    const std::string name = expected_states == 2 ? "c0" : "state " + std::to_string(i);
    check_tensor(state, name.c_str(), h0.dim(), layer.input);
    if (i == 1) hidden_size = state.size(-1);
    TORCH_CHECK(
        state.sizes().slice(0, h0.dim() - 1) == h0.sizes().slice(0, h0.dim() - 1) && state.size(-1) == hidden_size,
        name, " must have shape ", h0.sizes(), " but for the last dimension, got ", state.sizes());
  }
  layer.sizes = {{}, layer.input.size(-1), hidden_size, output_size, directions, most_threads()};
  layer.states = states.vec();
}

// Returns the steps of the layer, padded or packed. For a packed layer sets batch_sizes and first_rows, to which the
// result points.
Steps check_steps(RecurrentLayer& layer, const OptionalTensor& batch_sizes, int64_t batch) {
  const Tensor& input = layer.input;
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

std::atomic<bool> checks_values_on_gpu = false;

void check_lengths(const Tensor& lengths, const Tensor& input) {
  const int64_t time = input.size(0), batch = input.size(1);
  TORCH_CHECK(lengths.dim() == 1 && lengths.size(0) == batch && lengths.scalar_type() == at::kLong,
              "lengths must be int64 of shape [batch] = [", batch, "], got ", lengths.scalar_type(), " of shape ",
              lengths.sizes());
  TORCH_CHECK(lengths.device() == input.device(), "lengths is on ", lengths.device(), ", but input is on ",
              input.device());
  if (!lengths.is_cpu() && !checks_values_on_gpu) return;
  const Tensor dense = lengths.cpu().contiguous();
  const int64_t* begin = dense.const_data_ptr<int64_t>();
  for (const int64_t* length = begin; length != begin + batch; ++length)
    TORCH_CHECK_VALUE(0 <= *length && *length <= time, "lengths must lie between 0 and the number of time steps, ",
                      time, ", got ", *length);
}

// Checks where states are replaced, and by what.
void check_resets(RecurrentLayer& layer, const OptionalTensor& resets, at::TensorList reset_states) {
  TORCH_CHECK_VALUE(resets || reset_states.empty(), "reset_states are given without resets");
  if (!resets) return;
  const at::IntArrayRef rows = layer.input.sizes().slice(0, static_cast<size_t>(layer.input.dim() - 1));
  TORCH_CHECK_TYPE(resets->scalar_type() == at::kBool, "resets must be bool, got ", resets->scalar_type());
  TORCH_CHECK_VALUE(resets->sizes() == rows, "resets must have shape ", rows, ", got ", resets->sizes());
  TORCH_CHECK_VALUE(resets->device() == layer.input.device(), "resets is on ", resets->device(), ", but input is on ",
                    layer.input.device());
  const std::vector<Tensor>& states = layer.states;
  TORCH_CHECK_VALUE(reset_states.empty() || reset_states.size() == states.size(), "reset_states must have ",
                    states.size(), " tensors, got ", reset_states.size());
  for (size_t i = 0; i < reset_states.size(); ++i) {
    std::vector<int64_t> shape = states[i].sizes().vec();
    if (reset_states[0].dim() > 3) shape.insert(shape.begin(), layer.sizes.steps.time);
    TORCH_CHECK_VALUE(reset_states[i].sizes() == shape, "reset_states[", i, "] must have shape ", shape, ", got ",
                      reset_states[i].sizes());
    check_tensor(reset_states[i], "a tensor of reset_states", static_cast<int64_t>(shape.size()), layer.input);
  }
  layer.resets = *resets;
  layer.reset_states = reset_states.vec();
}

}  // namespace

void set_debug(bool enabled) { checks_values_on_gpu = enabled; }

void check_shape(const Tensor& tensor, const char* name, at::IntArrayRef expected) {
  TORCH_CHECK(tensor.sizes() == expected, name, " must have shape ", expected, ", got ", tensor.sizes());
}

std::vector<int64_t> RecurrentLayer::output_shape() const {
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = sizes.directions * sizes.output_size;
  return shape;
}

std::vector<Tensor> zero_states(const cells::Description& cell, const Tensor& input, int64_t rows, int64_t batch,
                                int64_t output_size, int64_t hidden_size, bool one_step) {
  const auto zeros = [&](int64_t size) {
    return one_step ? at::zeros({batch, size}, input.options()) : at::zeros({rows, batch, size}, input.options());
  };
  std::vector<Tensor> states = {zeros(output_size)};
  for (int i = 1; i < cell.states; ++i) states.push_back(output_size == hidden_size ? states[0] : zeros(hidden_size));
  return states;
}

void check_weights(RecurrentLayer& layer, at::TensorList weights) {
  const RecurrentSizes& s = layer.sizes;
  const auto count = static_cast<int64_t>(weights.size()), each = count / s.directions;
  layer.biased = each >= 4;
  layer.projected = each % 2 == 1;
  TORCH_CHECK(count % s.directions == 0 && 2 <= each && each <= 5 && (layer.cell.may_project() || !layer.projected),
              "weights must be weight_ih, weight_hh, with biases bias_ih, bias_hh, with a projection (LSTM only) "
              "weight_hr, for each of ",
              s.directions, " directions; got ", count, " tensors");
  TORCH_CHECK(layer.projected || s.output_size == s.hidden_size,
              "h0 and c0 must have the same size without a projection, got ", s.output_size, " and ", s.hidden_size);
  const int64_t rows = layer.cell.gates * s.hidden_size;
  const Tensor* next = weights.data();
  for (int64_t d = 0; d < s.directions; ++d) {
    const auto take = [&](const char* name, at::IntArrayRef shape) {
      check_tensor(*next, name, static_cast<int64_t>(shape.size()), layer.input);
      check_shape(*next, name, shape);
      return *next++;
    };
    DirectionWeights& named = layer.weights[d];
    named.weight_ih = take("weight_ih", {rows, s.input_size});
    named.weight_hh = take("weight_hh", {rows, s.output_size});
    if (layer.biased) named.bias_ih = take("bias_ih", {rows});
    if (layer.biased) named.bias_hh = take("bias_hh", {rows});
    if (layer.projected) named.weight_hr = take("weight_hr", {s.output_size, s.hidden_size});
  }
}

namespace {

// Checks a layer; `weights` is null if they are packed.
RecurrentLayer check(cells::Kind kind, const Tensor& input, at::TensorList states, const at::TensorList* weights,
                     const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& resets,
                     at::TensorList reset_states) {
  RecurrentLayer layer;
  layer.kind = kind;
  layer.cell = describe(layer.kind);
  layer.type = input.scalar_type();
  layer.input = input;
  check_dtype(input);
  TORCH_CHECK(!batch_sizes || !lengths, "lengths are for padded input, batch_sizes for packed input: give one of both");
  layer.one_step = !states.empty() && states[0].dim() == 2;
  TORCH_CHECK(!layer.one_step || (!batch_sizes && !lengths),
              "one step, with h0 of 2 dimensions, has no batch_sizes or lengths");
  TORCH_CHECK_VALUE(!layer.one_step || !resets, "one step, with h0 of 2 dimensions, has no resets");
  check_tensor(input, "input", layer.one_step || batch_sizes ? 2 : 3, input);
  check_states(layer, states);
  layer.sizes.steps = check_steps(layer, batch_sizes, layer.h0().size(-2));
  TORCH_CHECK(layer.sizes.steps.time > 0, "input must have at least one time step");
  const bool units = layer.sizes.hidden_size > 0 && layer.sizes.output_size > 0;
  TORCH_CHECK(units || (layer.one_step && layer.without_units()), "the states must not be empty, got shape ",
              layer.h0().sizes());
  if (weights) check_weights(layer, *weights);
  if (lengths) check_lengths(*lengths, input);
  if (lengths) layer.lengths = *lengths;
  check_resets(layer, resets, reset_states);
  return layer;
}

}  // namespace

RecurrentLayer check_layer(std::string_view cell, const Tensor& input, at::TensorList states, at::TensorList weights,
                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                           const OptionalTensor& resets, at::TensorList reset_states) {
  return check(kind_of(cell), input, states, &weights, batch_sizes, lengths, resets, reset_states);
}

RecurrentLayer check_layer_without_weights(cells::Kind kind, const Tensor& input, at::TensorList states,
                                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                           const OptionalTensor& resets, at::TensorList reset_states) {
  return check(kind, input, states, nullptr, batch_sizes, lengths, resets, reset_states);
}

}  // namespace fused_rnn::ops
