// The operators recurrent_freeze and recurrent_frozen: the first packs the weights of recurrent layers once, into one
// tensor of bytes, the second runs the layers with them.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cstring>
#include <tuple>

#include "ops/layer.h"
#include "ops/recurrent_cpu.h"
#include "ops/threads.h"

namespace fused_rnn::ops {
namespace {

// What precedes the packed weights of each layer.
struct alignas(64) Header {
  static constexpr int64_t kMark = 0x6e657a6f7266;  // "frozen"
  int64_t mark, layers;
  int64_t bytes;  // of the header and the weights, up to the next header
  cells::Kind kind;
  Capability capability;  // the instruction set for which the weights are packed
  at::ScalarType type;    // the dtype of the layer
  FrozenForm form;
  int64_t input_size, hidden_size, output_size, directions, block_units;
  bool projected;
};

// Returns the form in which weights of type `type` are packed, where the caller asks for `dtype`.
FrozenForm form_of(at::ScalarType type, std::optional<at::ScalarType> dtype) {
  if (!dtype || *dtype == type) {
    if (type != at::kBFloat16) return FrozenForm::kValues;
    return multiplies_pairs() ? FrozenForm::kPairs : FrozenForm::kBFloat16;
  }
  if (*dtype == at::kChar && type != at::kDouble) return FrozenForm::kInt8;
  TORCH_CHECK_VALUE(*dtype == at::kBFloat16 && type == at::kFloat, "weights of ", type, " cannot be frozen as ",
                    *dtype);
  return FrozenForm::kBFloat16;
}

Tensor recurrent_freeze(std::string_view cell, at::TensorList weights, int64_t layers, int64_t directions,
                        std::optional<at::ScalarType> dtype) {
  const auto count = static_cast<int64_t>(weights.size());
  TORCH_CHECK(layers > 0 && (directions == 1 || directions == 2) && count > 0 && count % (layers * directions) == 0,
              "there are ", count, " weights for ", layers, " layers of ", directions, " directions");
  const auto per_layer = static_cast<size_t>(count / layers), each = per_layer / static_cast<size_t>(directions);
  std::vector<RecurrentLayer> all;
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (int64_t l = 0; l < layers; ++l) {
    const at::TensorList of_layer = weights.slice(static_cast<size_t>(l) * per_layer, per_layer);
    RecurrentLayer layer;
    layer.kind = kind_of(cell);
    layer.cell = describe(layer.kind);
    layer.input = of_layer[0];
    layer.type = layer.input.scalar_type();
    check_dtype(layer.input);
    TORCH_CHECK(of_layer[0].dim() == 2 && of_layer[each - 1].dim() > 0, "weight_ih must have 2 dimensions");
    const int64_t hidden_size = of_layer[0].size(0) / layer.cell.gates;
    layer.sizes = {{},          of_layer[0].size(1),
                   hidden_size, each % 2 == 1 ? of_layer[each - 1].size(0) : hidden_size,
                   directions,  most_threads()};
    TORCH_CHECK_VALUE(hidden_size > 0, "a layer without hidden units cannot be frozen");
    check_weights(layer, of_layer);
    layer.frozen = {nullptr, form_of(layer.type, dtype), 0, layer.projected};
    constexpr int64_t kMostTerms = 65536;  // see cpu/kit/bytes.h
    TORCH_CHECK_VALUE(layer.frozen.form != FrozenForm::kInt8 ||
                          (layer.sizes.input_size <= kMostTerms && layer.sizes.output_size <= kMostTerms),
                      "a layer of more than ", kMostTerms, " inputs or hidden units cannot be frozen as int8");
    const int64_t bytes = freeze_on_cpu(layer);
    sizes.push_back(static_cast<int64_t>(sizeof(Header)) + (bytes + 63) / 64 * 64);
    total += sizes.back();
    all.push_back(std::move(layer));
  }
  Tensor packed = at::empty({total}, at::kByte);
  auto* at = packed.mutable_data_ptr<uint8_t>();
  for (int64_t l = 0; l < layers; ++l) {
    RecurrentLayer& layer = all[static_cast<size_t>(l)];
    const RecurrentSizes& s = layer.sizes;
    const Header header = {Header::kMark,
                           layers,
                           sizes[static_cast<size_t>(l)],
                           layer.kind,
                           capability_of(layer.frozen.form),
                           layer.type,
                           layer.frozen.form,
                           s.input_size,
                           s.hidden_size,
                           s.output_size,
                           s.directions,
                           layer.frozen.block_units,
                           layer.projected};
    std::memcpy(at, &header, sizeof header);
    layer.frozen.data = at + sizeof header;
    freeze_on_cpu(layer);
    at += header.bytes;
  }
  return packed;
}

// Returns the first header of packed weights.
const Header* check_packed(const Tensor& packed) {
  constexpr int64_t kSize = sizeof(Header);
  TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == at::kByte && packed.is_contiguous() && packed.numel() > kSize,
              "packed must be what recurrent_freeze returned");
  const auto* header = reinterpret_cast<const Header*>(packed.const_data_ptr<uint8_t>());
  TORCH_CHECK(header->mark == Header::kMark && header->capability == capability_of(header->form),
              "packed must be what recurrent_freeze returned on this machine");
  return header;
}

// Checks that a layer has the sizes of its packed weights.
void check_sizes(const RecurrentLayer& layer, const Header& header) {
  const RecurrentSizes& s = layer.sizes;
  TORCH_CHECK(layer.type == header.type, "input has dtype ", layer.type, ", but the frozen weights have ", header.type);
  TORCH_CHECK(s.input_size == header.input_size, "input must have size ", header.input_size, ", got ", s.input_size);
  TORCH_CHECK(
      s.output_size == header.output_size && s.hidden_size == header.hidden_size && s.directions == header.directions,
      "h0 must have ", header.directions, " directions and size ", header.output_size, ", got shape ",
      layer.h0().sizes());
}

// Returns initial states of zero for all layers, or for one step of one layer.
std::vector<Tensor> initial_states(const Header& header, const Tensor& input, const OptionalTensor& batch_sizes) {
  TORCH_CHECK(input.dim() >= 2, "input must have 2 or 3 dimensions, got shape ", input.sizes());
  const bool has_sizes = batch_sizes && batch_sizes->numel() > 0 && batch_sizes->scalar_type() == at::kLong;
  const int64_t batch = has_sizes ? batch_sizes->const_data_ptr<int64_t>()[0] : input.size(-2);
  return zero_states(describe(header.kind), input, header.layers * header.directions, batch, header.output_size,
                     header.hidden_size, input.dim() == 2 && !batch_sizes);
}

using Outputs = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;

Outputs run_frozen(const Tensor& input, const std::vector<Tensor>& states, const Header* header,
                   const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool return_states,
                   const OptionalTensor& resets, const std::vector<Tensor>& reset_states) {
  const int64_t layers = header->layers;
  RecurrentOutputs outputs;
  std::vector<std::vector<Tensor>> finals(states.size());
  for (int64_t l = 0; l < layers; ++l) {
    const auto of_layer = [&](const std::vector<Tensor>& all) {
      if (layers == 1) return all;
      std::vector<Tensor> own;
      for (const Tensor& state : all) own.push_back(state.narrow(-3, l * header->directions, header->directions));
      return own;
    };
    RecurrentLayer layer = check_layer_without_weights(header->kind, l == 0 ? input : outputs.output, of_layer(states),
                                                       batch_sizes, lengths, resets, of_layer(reset_states));
    check_sizes(layer, *header);
    layer.frozen = {const_cast<Header*>(header + 1), header->form, header->block_units, header->projected};
    outputs = forward_frozen(layer, return_states && l + 1 == layers);
    if (layers == 1) return {std::move(outputs.output), std::move(outputs.states), std::move(outputs.history)};
    for (size_t i = 0; i < states.size(); ++i) finals[i].push_back(outputs.states[i]);
    header = reinterpret_cast<const Header*>(reinterpret_cast<const uint8_t*>(header) + header->bytes);
  }
  std::vector<Tensor> joined;
  for (const std::vector<Tensor>& of_layers : finals) joined.push_back(at::cat(of_layers));
  return {std::move(outputs.output), std::move(joined), std::move(outputs.history)};
}

Outputs recurrent_frozen(const Tensor& input, at::TensorList states, const Tensor& packed,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths, bool return_states,
                         const OptionalTensor& resets, const OptionalTensor& reset_h, const OptionalTensor& reset_c) {
  const Header* header = check_packed(packed);
  std::vector<Tensor> reset_states;
  for (const OptionalTensor* state : {&reset_h, &reset_c})
    if (*state) reset_states.push_back(**state);
  if (at::GradMode::is_enabled()) {
    bool needed = input.requires_grad();
    for (const Tensor& state : states) needed = needed || state.requires_grad();
    for (const Tensor& state : reset_states) needed = needed || state.requires_grad();
    TORCH_CHECK(!needed, "a frozen layer computes no gradients, but its input or a state requires one");
  }
  try {
    std::vector<Tensor> given = states.vec();
    if (given.empty()) given = initial_states(*header, input, batch_sizes);
    for (const Tensor& state : given)
      TORCH_CHECK(state.dim() == (header->layers == 1 && state.dim() == 2 ? 2 : 3) &&
                      (state.dim() == 2 || state.size(0) == header->layers * header->directions),
                  "a state must be of ", header->layers * header->directions, " layers and directions, got shape ",
                  state.sizes());
    return run_frozen(input, given, header, batch_sizes, lengths, return_states, resets, reset_states);
  } catch (c10::Error& error) {
    error.add_context("refused by fused_rnn::recurrent");  // see recurrent.cpp
    throw;
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("recurrent_freeze", recurrent_freeze);
  library.impl("recurrent_frozen", recurrent_frozen);
}

// There are no gradients: recurrent_frozen raises an error where one is needed, and packed weights have none.
TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("recurrent_freeze", torch::CppFunction::makeFallthrough());
  library.impl("recurrent_frozen", torch::CppFunction::makeFallthrough());
}

}  // namespace fused_rnn::ops
