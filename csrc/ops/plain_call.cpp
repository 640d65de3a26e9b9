#include "ops/plain_call.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "ops/autograd/autograd.h"
#include "ops/layer.h"

namespace fused_rnn::ops {
namespace {

// Whether no mode or transform is active that the general way attends to.
bool no_mode() {
  return !c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set() && !at::impl::torch_function_mode_enabled() &&
         !torch::jit::tracer::isTracing() && !torch::autograd::ForwardADLevel::try_get_by_idx(0) &&
         !at::autocast::is_autocast_enabled(at::kCPU) && !at::autocast::is_autocast_enabled(at::kCUDA);
}

// Whether nothing but inference is asked for.
bool is_plain(const Tensor& input, at::TensorList states, at::TensorList weights) {
  return no_mode() && !needs_graph(input) && !needs_graph(states) && !needs_graph(weights);
}

using FrozenSignature = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>(
    const Tensor& input, at::TensorList states, const Tensor& packed, const OptionalTensor& batch_sizes,
    const OptionalTensor& lengths, bool return_states, const OptionalTensor& resets, const OptionalTensor& reset_h,
    const OptionalTensor& reset_c);

// Returns the values of all steps with the steps first, or those of a result with the batch first again.
Tensor swap_batch(const Tensor& values, bool batch_first) { return batch_first ? values.transpose(0, 1) : values; }

}  // namespace

std::optional<std::vector<Tensor>> plain_recurrent(std::string_view cell, const Tensor& input, at::TensorList states,
                                                   at::TensorList weights, int64_t layers, int64_t directions,
                                                   bool batch_first) {
  if (!is_plain(input, states, weights)) return std::nullopt;
  const cells::Description structure = describe(kind_of(cell));
  const int64_t rows = layers * directions;
  const bool one_step = input.dim() == 2;
  const auto count = static_cast<size_t>(structure.states), per_layer = weights.size() / static_cast<size_t>(layers);
  const bool fits = (one_step || input.dim() == 3) && (states.empty() || states.size() == count) && per_layer >= 2 &&
                    weights.size() == per_layer * static_cast<size_t>(layers) && weights[0].dim() == 2;
  if (!fits) return std::nullopt;
  for (const Tensor& state : states)
    if (state.dim() != input.dim() || (!one_step && state.size(0) != rows)) return std::nullopt;
  try {
    Tensor values = swap_batch(input, batch_first);
    std::vector<Tensor> initial = states.vec();
    if (initial.empty()) {
      const size_t each = weights.size() / static_cast<size_t>(rows);
      const int64_t hidden_size = weights[0].size(0) / structure.gates;
      const int64_t output_size = each % 2 == 1 ? weights[each - 1].size(0) : hidden_size;
      initial = zero_states(structure, input, rows, values.size(-2), output_size, hidden_size, one_step);
    }
    std::vector<std::vector<Tensor>> finals(count);
    for (int64_t layer = 0; layer < layers; ++layer) {
      std::vector<Tensor> before = initial;
      if (layers > 1)
        for (Tensor& state : before) state = state.narrow(0, layer * directions, directions);
      auto [output, after, gates, history] = recurrent_operator().call(
          cell, values, before, weights.slice(static_cast<size_t>(layer) * per_layer, per_layer), {}, {}, false, {}, {},
          {});
      values = std::move(output);
      for (size_t i = 0; i < count; ++i) finals[i].push_back(std::move(after[i]));
    }
    std::vector<Tensor> results = {swap_batch(values, batch_first)};
    for (std::vector<Tensor>& state : finals) results.push_back(layers == 1 ? std::move(state[0]) : at::cat(state));
    return results;
  } catch (const c10::Error&) {
    return std::nullopt;  // The general way repeats the call, and raises what it should.
  }
}

std::optional<std::vector<Tensor>> plain_frozen(const Tensor& input, at::TensorList states, at::TensorList weights,
                                                const Tensor& packed, bool batch_first) {
  static const auto frozen = find_operator<FrozenSignature>("fused_rnn::recurrent_frozen");
  if (!is_plain(input, states, weights)) return std::nullopt;
  try {
    auto [output, finals, history] =
        frozen.call(swap_batch(input, batch_first), states, packed, {}, {}, false, {}, {}, {});
    std::vector<Tensor> results = {swap_batch(output, batch_first)};
    for (Tensor& state : finals) results.push_back(std::move(state));
    return results;
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

}  // namespace fused_rnn::ops
