#include "ops/plain_call.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
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

// Returns the shape of state number `index` of a network of `rows` layers and directions, for a batch.
std::vector<int64_t> state_shape(size_t index, at::TensorList weights, const cells::Description& cell, int64_t rows,
                                 int64_t batch, bool one_step) {
  const size_t each = weights.size() / static_cast<size_t>(rows);
  const bool projected = each % 2 == 1 && index == 0;
  const int64_t size = projected ? weights[each - 1].size(0) : weights[0].size(0) / cell.gates;
  return one_step ? std::vector<int64_t>{batch, size} : std::vector<int64_t>{rows, batch, size};
}

}  // namespace

std::optional<std::vector<Tensor>> plain_recurrent(std::string_view cell, const Tensor& input, at::TensorList states,
                                                   at::TensorList weights, int64_t layers, int64_t directions,
                                                   bool batch_first) {
  if (!no_mode() || needs_graph(input) || needs_graph(states) || needs_graph(weights)) return std::nullopt;
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
    Tensor values = batch_first ? input.transpose(0, 1) : input;
    std::vector<Tensor> initial = states.vec();
    for (size_t i = 0; i < count && states.empty(); ++i) {
      const auto shape = state_shape(i, weights, structure, rows, values.size(-2), one_step);
      initial.push_back(i > 0 && initial[0].sizes() == shape ? initial[0] : at::zeros(shape, input.options()));
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
    std::vector<Tensor> results = {batch_first ? values.transpose(0, 1) : values};
    for (std::vector<Tensor>& state : finals) results.push_back(layers == 1 ? std::move(state[0]) : at::cat(state));
    return results;
  } catch (const c10::Error&) {
    return std::nullopt;  // The general way repeats the call, and raises what it should.
  }
}

}  // namespace fused_rnn::ops
