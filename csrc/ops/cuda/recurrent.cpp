#include "ops/cuda/recurrent.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "ops/cuda/gradients.h"
#include "ops/cuda/layer.h"
#include "ops/cuda/matmul.h"
#include "ops/cuda/persistent.h"
#include "ops/cuda/stepwise.h"

namespace fused_rnn::ops {
namespace {

// While this lives, the layer's GPU is the current one, and autocast changes the type of no product.
struct Guards {
  explicit Guards(const RecurrentLayer& layer) : device(layer.input.device()) {}

  const c10::DeviceGuard device;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Returns run(pass) with the plan of a pass over the layer, and with another one where the GPU has no room for the
// first.
template <typename Run>
auto with_plan(const CudaLayer& cuda, bool backward, const Run& run) {
  const RecurrentLayer& layer = cuda.layer;
  for (;;) {
    // Each one that does not fit makes the next one smaller; the stepwise path always fits.
    const PlannedPass pass = plan_pass(layer.cell, layer.sizes, layer.input.element_size(), layer.projected, backward,
                                       layer.input.device().index());
    try {
      return run(pass);
    } catch (const PlanDoesNotFit&) {
    }
  }
}

// Writes the input's part of the gates' sums, without biases, for all steps.
void multiply_input(const CudaLayer& cuda, const Tensor& gates) {
  const RecurrentSizes& s = cuda.layer.sizes;
  for (int64_t d = 0; d < s.directions; ++d)
    multiply(cuda, gates.select(0, d).narrow(1, 0, cuda.gates_size()), cuda.layer.input.view({-1, s.input_size}),
             cuda.layer.weights[d].weight_ih.t());
}

RecurrentOutputs forward(const CudaLayer& cuda, const PlannedPass& pass, bool save_for_backward) {
  RecurrentOutputs outputs;
  outputs.output = cuda.empty(cuda.layer.output_shape());
  for (const Tensor& state : cuda.layer.states) outputs.states.push_back(cuda.empty(state.sizes()));
  outputs.gates = cuda.empty(cuda.layer.gates_shape());
  for (int i = 0; i < cuda.layer.cell.cell_states(); ++i)
    outputs.history.push_back(cuda.empty(save_for_backward ? cuda.layer.history_shape() : std::vector<int64_t>{0}));
  if (cuda.steps.batch > 0) {
    multiply_input(cuda, outputs.gates);
    if (pass.stepwise())
      stepwise_forward(cuda, outputs, save_for_backward);
    else
      persistent_forward(cuda, pass, outputs, save_for_backward);
  }
  if (!save_for_backward) outputs.gates = cuda.empty({0});
  return outputs;
}

// Runs a layer of half precision in float32. The gates that it saves are rounded like the outputs; backward uses them
// only if it takes the persistent path.
RecurrentOutputs forward_in_float32(const CudaLayer& cuda, const PlannedPass& pass, bool save_for_backward) {
  RecurrentOutputs outputs = forward(cuda.widened(), pass, save_for_backward);
  std::vector<Tensor*> narrow = {&outputs.output, &outputs.gates};
  for (Tensor& state : outputs.states) narrow.push_back(&state);
  convert(narrow, cuda.layer.type);
  return outputs;
}

// Runs the steps backwards, and computes the products that are wanted. `before` is what hidden_before() returns; it may
// be empty if no gradients of weights are wanted.
RecurrentInputGradients backward(const CudaLayer& cuda, const PlannedPass& pass, const RecurrentGradients& gradients,
                                 const RecurrentSaved& saved, const std::array<Tensor, 2>& before, Wanted wanted) {
  StepGradients steps;
  steps.gates = cuda.empty(cuda.layer.gates_shape());
  if (wanted.states || !pass.stepwise()) {
    steps.h0 = cuda.empty(cuda.layer.h0().sizes());
    if (cuda.layer.c0().defined()) steps.c0 = cuda.empty(cuda.layer.c0().sizes());
  }
  const std::vector<Tensor>& reset_states = cuda.layer.reset_states;
  if (wanted.states && !reset_states.empty()) {
    steps.reset_h = cuda.empty_state(reset_states[0].sizes()).zero_();
    if (reset_states.size() > 1) steps.reset_c = cuda.empty_state(reset_states[1].sizes()).zero_();
  }
  if (cuda.steps.batch > 0 && pass.stepwise())
    stepwise_backward(cuda, gradients, saved, steps);
  else if (cuda.steps.batch > 0)
    persistent_backward(cuda, pass, gradients, saved, steps);
  RecurrentInputGradients result;
  result.input = wanted.input ? input_gradient(cuda, steps) : cuda.empty({0});
  const Tensor states[] = {steps.h0, steps.c0};
  for (size_t i = 0; i < cuda.layer.states.size(); ++i)
    result.states.push_back(wanted.states ? states[i] : cuda.empty({0}));
  const Tensor others[] = {steps.reset_h, steps.reset_c};
  for (size_t i = 0; i < reset_states.size(); ++i)
    result.reset_states.push_back(wanted.states ? others[i].to(cuda.layer.type) : cuda.empty({0}));
  if (wanted.weights) {
    std::array<DirectionWeights, 2> weights = weight_gradients(cuda, saved, steps, before);
    for (int64_t d = 0; d < cuda.layer.sizes.directions; ++d) result.weights[d] = std::move(weights[d]);
  }
  return result;
}

// Runs a layer of half precision backwards in float32. The saved gates were rounded, so they are computed once more.
RecurrentInputGradients backward_in_float32(const CudaLayer& cuda, const PlannedPass& pass,
                                            RecurrentGradients gradients, RecurrentSaved saved, Wanted wanted) {
  const CudaLayer wide = cuda.widened();
  std::vector<Tensor*> widen = {&gradients.output, &saved.output};
  for (Tensor& gradient : gradients.states) widen.push_back(&gradient);
  convert(widen, at::kFloat);
  const std::array<Tensor, 2> before = hidden_before(wide, saved.output);
  saved.gates = wide.empty(saved.gates.sizes());
  multiply_input(wide, saved.gates);
  for (int64_t d = 0; d < wide.layer.sizes.directions; ++d)
    recompute_gates(wide, before[d], d, saved.gates.select(0, d));
  RecurrentInputGradients result = backward(wide, pass, gradients, saved, before, wanted);
  std::vector<Tensor*> narrow = {&result.input};
  for (Tensor& gradient : result.states) narrow.push_back(&gradient);
  for (Tensor& gradient : result.reset_states) narrow.push_back(&gradient);
  for (DirectionWeights& weights : result.weights)
    weights.for_each([&](Tensor& gradient) { narrow.push_back(&gradient); });
  convert(narrow, cuda.layer.type);
  return result;
}

// Returns a tensor dense and, if the call is of one step, with a dimension for time or directions; undefined if it is.
Tensor as_sequence(const Tensor& tensor, const RecurrentLayer& given) {
  if (!tensor.defined()) return tensor;
  return (given.one_step ? tensor.unsqueeze(0) : tensor).contiguous();
}
// Takes this dimension away again; but a gradient of shape [0], which was not wanted, has none.
void as_given(Tensor& tensor, const RecurrentLayer& given) {
  if (given.one_step && tensor.dim() == 3) tensor = tensor.squeeze(0);
}

}  // namespace

RecurrentOutputs forward_on_cuda(const RecurrentLayer& layer, bool save_for_backward) {
  const Guards guards(layer);
  const CudaLayer cuda(layer);
  RecurrentOutputs outputs = with_plan(cuda, /*backward=*/false, [&](const PlannedPass& pass) {
    return pass.stepwise() && cuda.stepwise_in_float32() ? forward_in_float32(cuda, pass, save_for_backward)
                                                         : forward(cuda, pass, save_for_backward);
  });
  std::vector<Tensor*> histories;
  for (Tensor& states : outputs.history) histories.push_back(&states);
  convert(histories, cuda.history_type());
  as_given(outputs.output, layer);
  for (Tensor& state : outputs.states) as_given(state, layer);
  return outputs;
}

RecurrentInputGradients backward_on_cuda(const RecurrentLayer& layer, const RecurrentGradients& given_gradients,
                                         const RecurrentSaved& given_saved, Wanted wanted) {
  const Guards guards(layer);
  const CudaLayer cuda(layer);
  RecurrentGradients gradients = given_gradients;
  RecurrentSaved saved = given_saved;
  gradients.output = as_sequence(gradients.output, layer);
  for (Tensor& gradient : gradients.states) gradient = as_sequence(gradient, layer);
  for (Tensor& gradient : gradients.history)
    if (gradient.defined()) gradient = gradient.contiguous();
  saved.output = as_sequence(saved.output, layer);
  saved.gates = saved.gates.contiguous();
  for (Tensor& states : saved.history) states = states.contiguous();
  RecurrentInputGradients result = with_plan(cuda, /*backward=*/true, [&](const PlannedPass& pass) {
    if (pass.stepwise() && cuda.stepwise_in_float32()) return backward_in_float32(cuda, pass, gradients, saved, wanted);
    RecurrentGradients own_gradients = gradients;
    RecurrentSaved own_saved = saved;
    std::vector<Tensor*> histories;
    for (Tensor& states : own_saved.history) histories.push_back(&states);
    for (Tensor& gradient : own_gradients.history) histories.push_back(&gradient);
    convert(histories, cuda.layer.type);
    std::array<Tensor, 2> before;
    if (wanted.weights) before = hidden_before(cuda, saved.output);
    return backward(cuda, pass, own_gradients, own_saved, before, wanted);
  });
  as_given(result.input, layer);
  for (Tensor& gradient : result.states) as_given(gradient, layer);
  return result;
}

}  // namespace fused_rnn::ops
