#include "ops/cuda/stepwise.h"

#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "ops/cuda/matmul.h"

namespace fused_rnn::ops {
namespace {

// One step of one direction.
struct HostStep {
  int64_t t, before, after;  // the time of the step, and of those before and after it in the direction, -1 for none
  int64_t first_row, sequences;
};

HostStep step_at(const CudaLayer& cuda, int64_t direction, int64_t index) {
  const Steps& steps = cuda.layer.sizes.steps;
  const int64_t t = direction == 0 ? index : steps.time - 1 - index;
  const int64_t before = index == 0 ? -1 : direction == 0 ? t - 1 : t + 1;
  const int64_t after = index == steps.time - 1 ? -1 : direction == 0 ? t + 1 : t - 1;
  return {t, before, after, steps.first_row(t), steps.batch_size(t)};
}

bool has_cell_state(const CudaLayer& cuda) { return cuda.layer.cell.cell_states() > 0; }

// Returns the rows of a step in the part of [rows, directions * output_size] that belongs to a direction.
Tensor output_rows(const CudaLayer& cuda, const Tensor& output, int64_t direction, const HostStep& step) {
  const int64_t size = cuda.layer.sizes.output_size;
  return output.view({-1, cuda.layer.sizes.directions * size})
      .narrow(0, step.first_row, step.sequences)
      .narrow(1, direction * size, size);
}

// Returns which of a step's sequences have the step, [batch, 1]; undefined if all of them have it.
Tensor running_in(const CudaLayer& cuda, const HostStep& step) {
  return cuda.lengths.defined() ? cuda.lengths.gt(step.t).unsqueeze(1) : Tensor();
}

// Returns `values` for the sequences that have the step, and `old` for the others.
Tensor where_running(const Tensor& running, const Tensor& values, const Tensor& old) {
  return running.defined() ? at::where(running, values, old) : values;
}

// Returns params with what every step of a direction shares.
template <typename Params>
Params params_of(const CudaLayer& cuda, int64_t direction, const Tensor& gates, const Tensor& cells) {
  Params params = {};
  params.steps = cuda.steps;
  params.hidden_size = cuda.layer.sizes.hidden_size;
  params.directions = cuda.layer.sizes.directions;
  params.direction = direction;
  params.gates = data_of(gates);
  params.cells = data_of(cells);
  params.resets = cuda.resets();
  params.reset_h = data_of(get(cuda.layer.reset_states, 0));
  params.reset_c = data_of(get(cuda.layer.reset_states, 1));
  return params;
}

// Returns, of what replaces states or of its gradient, the part for the step at time t, [sequences, size].
Tensor replacing_states(const CudaLayer& cuda, const Tensor& states, int64_t d, int64_t t) {
  const int64_t sequences = cuda.layer.sizes.steps.batch_size(t);
  const bool every_step = cuda.layer.every_step_has_reset_states();
  return (every_step ? states.select(0, t + d) : states).select(0, d).narrow(0, 0, sequences);
}

// Returns for which sequences of the step at time t the states before it are replaced, [sequences, 1].
Tensor replaced_states(const CudaLayer& cuda, int64_t d, int64_t t) {
  const Steps& steps = cuda.layer.sizes.steps;
  return cuda.begins.select(0, d).narrow(0, steps.first_row(t), steps.batch_size(t)).unsqueeze(1);
}

// Returns state number `index` before the step at time t, [batch, size], with those replaced that are to be.
Tensor replace_states(const CudaLayer& cuda, const Tensor& state, size_t index, int64_t d, int64_t t) {
  const Tensor where = replaced_states(cuda, d, t);
  const Tensor others = get(cuda.layer.reset_states, index);
  const Tensor own = state.narrow(0, 0, where.size(0));
  const Tensor replaced =
      others.defined() ? at::where(where, replacing_states(cuda, others, d, t), own) : own.masked_fill(where, 0);
  return at::cat({replaced, state.narrow(0, where.size(0), state.size(0) - where.size(0))});
}

// Takes from the gradient of the states before the step at time t, [batch, size], what belongs to states that replaced
// others: adds it to `gradient`, if that is defined, and leaves zero.
void take_replaced(const CudaLayer& cuda, const Tensor& states, const Tensor& gradient, int64_t d, int64_t t) {
  const Tensor where = replaced_states(cuda, d, t);
  Tensor own = states.narrow(0, 0, where.size(0));
  if (gradient.defined()) replacing_states(cuda, gradient, d, t).add_(own.masked_fill(where.logical_not(), 0));
  own.masked_fill_(where, 0);
}

PointwiseForwardParams<void, void> forward_params(const CudaLayer& cuda, int64_t direction, const Tensor& gates,
                                                  const Tensor& cells, const Tensor& sums) {
  auto params = params_of<PointwiseForwardParams<void, void>>(cuda, direction, gates, cells);
  params.sums = data_of(sums);
  params.bias_ih = data_of(cuda.layer.weights[direction].bias_ih);
  params.bias_hh = data_of(cuda.layer.weights[direction].bias_hh);
  return params;
}

// Projects the hidden values after a step, for the output and for the next step, whose `state` it updates.
void project(const CudaLayer& cuda, const RecurrentOutputs& outputs, int64_t d, const HostStep& step,
             const Tensor& hidden, const Tensor& state) {
  const Tensor running = running_in(cuda, step), own = state.narrow(0, 0, step.sequences);
  const Tensor values = cuda.empty({step.sequences, cuda.layer.sizes.output_size});
  multiply(cuda, values, hidden.narrow(0, 0, step.sequences), cuda.layer.weights[d].weight_hr.t());
  output_rows(cuda, outputs.output, d, step).copy_(where_running(running, values, at::zeros({}, values.options())));
  own.copy_(where_running(running, values, own));
  if (cuda.begins.defined() && step.after >= 0) Tensor(state).copy_(replace_states(cuda, state, 0, d, step.after));
}

void forward_direction(const CudaLayer& cuda, RecurrentOutputs& outputs, bool save_for_backward, int64_t d) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const bool projected = cuda.layer.projected, packed = cuda.batch_sizes.defined();
  // The first step in the second direction is the last one of its segment, or of its sequence: nothing is replaced.
  const auto initial_state = [&](const Tensor& states, size_t index) {
    const Tensor own = states.select(0, d);
    return cuda.begins.defined() && d == 0 ? replace_states(cuda, own, index, d, 0) : own;
  };
  const Tensor h0 = initial_state(cuda.layer.h0(), 0), weight = cuda.layer.weights[d].weight_hh.t();
  const Tensor state = outputs.states[0].select(0, d);
  const Tensor hidden = projected ? cuda.empty({s.steps.batch, s.hidden_size}) : state;
  const Tensor sums = cuda.empty_state({s.steps.batch, cuda.gates_size()});
  Tensor carried, initial, c_n;  // `carried` is the state that is not rounded between the steps: c, or h if a step adds
                                 // to it and its type would round it
  if (has_cell_state(cuda)) {
    initial = initial_state(cuda.layer.c0(), 1);
    c_n = outputs.states[1].select(0, d);
  } else if (cuda.layer.cell.reads_hidden && cuda.layer.type != cuda.state_type && s.steps.time > 1) {
    initial = h0;
  }
  if (initial.defined())
    carried = packed ? initial.to(cuda.state_type, false, /*copy=*/true) : cuda.empty_state(initial.sizes());
  // The sequences of a packed batch start and end at several steps. Otherwise the first step reads the initial states,
  // and they need no copy.
  if (packed || projected) state.copy_(h0);
  auto params = forward_params(cuda, d, outputs.gates, get(outputs.history, 0), sums);
  params.hidden = data_of(hidden);
  params.cell = data_of(carried);
  params.output = projected ? nullptr : data_of(outputs.output);
  params.save_for_backward = save_for_backward;
  for (int64_t index = 0; index < s.steps.time; ++index) {
    const HostStep step = step_at(cuda, d, index);
    if (step.sequences == 0) continue;
    const Tensor before = index == 0 && !packed && !projected ? h0 : state;
    multiply(cuda, sums.narrow(0, 0, step.sequences), before.narrow(0, 0, step.sequences), weight);
    params.t = step.t;
    params.next = step.after;
    params.sequences = step.sequences;
    params.before = projected ? nullptr : data_of(before);
    params.c0 = index == 0 && !packed ? data_of(initial) : nullptr;
    params.c_n = index == s.steps.time - 1 && !packed ? data_of(c_n) : nullptr;
    check_launch(pointwise(cuda.layer.kind, cuda.element, params, cuda.stream));
    if (projected) project(cuda, outputs, d, step, hidden, state);
  }
  if (packed && c_n.defined()) c_n.copy_(carried);
}

// The gradients of a direction's states between two steps. That of the hidden values is the sum of `hidden` and
// `recurrent`, the part that passed the recurrent weights; with a projection all of it is in `hidden`.
struct Carried {
  Tensor hidden, recurrent, cell;

  Carried(const CudaLayer& cuda, const RecurrentGradients& gradients, int64_t d)
      : recurrent(cuda.empty_state({cuda.steps.batch, cuda.layer.sizes.output_size})) {
    const bool packed = cuda.batch_sizes.defined();
    // Unless `filled`, the first step that is run backwards reads the gradient of the final state itself.
    const auto initial = [&](const Tensor& gradient, at::IntArrayRef shape, bool filled) {
      if (!filled) return cuda.empty_state(shape);
      return gradient.defined() ? gradient.select(0, d).to(cuda.state_type, false, /*copy=*/true)
                                : cuda.empty_state(shape).zero_();
    };
    hidden = initial(gradients.states[0], recurrent.sizes(), packed || cuda.layer.projected);
    if (packed) recurrent.zero_();
    if (has_cell_state(cuda))
      cell = initial(gradients.states[1], {cuda.steps.batch, cuda.layer.sizes.hidden_size}, packed);
  }
};

// With a projection: returns the gradient of the hidden values before it, stores that of the output values, and leaves
// in carried.hidden what belongs to sequences that do not have the step.
Tensor through_projection(const CudaLayer& cuda, const RecurrentGradients& gradients, const StepGradients& steps,
                          const Carried& carried, int64_t d, const HostStep& step) {
  const Tensor running = running_in(cuda, step);
  Tensor own = carried.hidden.narrow(0, 0, step.sequences), total = own;
  if (gradients.output.defined()) total = total.add(output_rows(cuda, gradients.output, d, step));
  Tensor stored = steps.projected.select(0, d).narrow(0, step.first_row, step.sequences);
  stored.copy_(where_running(running, total, at::zeros({}, total.options())));
  own.copy_(where_running(running, at::zeros({}, own.options()).expand_as(own), own));
  return product(cuda, stored, cuda.layer.weights[d].weight_hr);
}

// Whether all of the gradient of h0 passes the recurrent weights, at the first step of every sequence at once.
bool passes_weights_alone(const CudaLayer& cuda) {
  return !cuda.layer.cell.reads_hidden && !cuda.layer.projected && !cuda.batch_sizes.defined() &&
         !cuda.lengths.defined();
}

// Multiplies the gradients of a step's sums by the recurrent weights, for the hidden values before the step.
void through_weights(const CudaLayer& cuda, const StepGradients& steps, const Carried& carried, int64_t d,
                     const HostStep& step, const Tensor& of_sums) {
  const Tensor& weight = cuda.layer.weights[d].weight_hh;
  if (step.before < 0 && !steps.h0.defined()) return;
  if (step.before < 0 && passes_weights_alone(cuda)) return multiply(cuda, steps.h0.select(0, d), of_sums, weight);
  const Tensor recurrent = carried.recurrent.narrow(0, 0, step.sequences);
  multiply(cuda, recurrent, of_sums, weight);
  if (cuda.layer.projected) carried.hidden.narrow(0, 0, step.sequences).add_(recurrent);
}

// Writes the gradients of the initial states, as far as no step did so.
void finish(const CudaLayer& cuda, const StepGradients& steps, const Carried& carried, int64_t d) {
  if (!steps.h0.defined()) return;
  Tensor grad_h0 = steps.h0.select(0, d);
  if (cuda.layer.projected)
    grad_h0.copy_(carried.hidden);
  else if (!passes_weights_alone(cuda))
    at::add_out(grad_h0, carried.hidden, carried.recurrent);
  if (has_cell_state(cuda) && cuda.batch_sizes.defined()) steps.c0.select(0, d).copy_(carried.cell);
  if (!cuda.begins.defined() || d == 1) return;
  take_replaced(cuda, grad_h0, steps.reset_h, d, 0);
  if (has_cell_state(cuda)) take_replaced(cuda, steps.c0.select(0, d), steps.reset_c, d, 0);
}

PointwiseBackwardParams<void, void> backward_params(const CudaLayer& cuda, const RecurrentGradients& gradients,
                                                    const RecurrentSaved& saved, const StepGradients& steps,
                                                    const Carried& carried, int64_t d) {
  auto params = params_of<PointwiseBackwardParams<void, void>>(cuda, d, saved.gates, get(saved.history, 0));
  const auto of_direction = [&](const Tensor& all) { return all.defined() ? data_of(all.select(0, d)) : nullptr; };
  params.h0 = data_of(cuda.layer.h0());
  params.c0 = data_of(cuda.layer.c0());
  params.output = data_of(saved.output);
  params.grad_output = cuda.layer.projected ? nullptr : data_of(gradients.output);
  params.grad_cells = data_of(get(gradients.history, 0));
  params.grad_h_n = of_direction(gradients.states[0]);
  params.grad_c_n = of_direction(get(gradients.states, 1));
  params.grad_h_direct = data_of(carried.hidden);
  params.grad_h_recurrent = data_of(carried.recurrent);
  params.grad_cell = data_of(carried.cell);
  params.grad_gates = data_of(steps.gates);
  params.grad_reset_h = data_of(steps.reset_h);
  params.grad_reset_c = data_of(steps.reset_c);
  return params;
}

void backward_direction(const CudaLayer& cuda, const RecurrentGradients& gradients, const RecurrentSaved& saved,
                        const StepGradients& steps, int64_t d) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const bool packed = cuda.batch_sizes.defined();
  const Carried carried(cuda, gradients, d);
  auto params = backward_params(cuda, gradients, saved, steps, carried, d);
  // The gradients of the sums' recurrent parts, of all rows where they lie side by side, else of one step.
  const bool split = cuda.layer.cell.splits_sums();
  const Tensor of_recurrent =
      split ? cuda.empty({s.steps.batch, cuda.gates_size()}) : steps.gates.select(0, d).narrow(1, 0, cuda.gates_size());
  if (split) params.grad_recurrent = data_of(of_recurrent);
  Tensor grad_hidden;
  for (int64_t index = s.steps.time - 1; index >= 0; --index) {
    const HostStep step = step_at(cuda, d, index);
    if (step.sequences == 0) continue;
    params.t = step.t;
    params.before = step.before;
    params.after = step.after;
    params.sequences = step.sequences;
    params.first = index == s.steps.time - 1 && !packed;
    if (index == 0 && !packed && steps.c0.defined()) params.grad_c0 = data_of(steps.c0.select(0, d));
    if (cuda.layer.projected) {
      if (cuda.begins.defined() && step.after >= 0) take_replaced(cuda, carried.hidden, steps.reset_h, d, step.after);
      grad_hidden = through_projection(cuda, gradients, steps, carried, d, step);
      params.grad_projected = data_of(grad_hidden);
    }
    check_launch(pointwise(cuda.layer.kind, cuda.element, params, cuda.stream));
    through_weights(cuda, steps, carried, d, step, of_recurrent.narrow(0, split ? 0 : step.first_row, step.sequences));
  }
  finish(cuda, steps, carried, d);
}

}  // namespace

void stepwise_forward(const CudaLayer& cuda, RecurrentOutputs& outputs, bool save_for_backward) {
  for (int64_t d = 0; d < cuda.layer.sizes.directions; ++d) forward_direction(cuda, outputs, save_for_backward, d);
}

void stepwise_backward(const CudaLayer& cuda, const RecurrentGradients& gradients, const RecurrentSaved& saved,
                       StepGradients& steps) {
  const RecurrentSizes& s = cuda.layer.sizes;
  if (cuda.layer.projected) steps.projected = cuda.empty({s.directions, cuda.steps.rows, s.output_size});
  for (int64_t d = 0; d < s.directions; ++d) backward_direction(cuda, gradients, saved, steps, d);
}

void recompute_gates(const CudaLayer& cuda, const Tensor& before, int64_t direction, const Tensor& gates) {
  const int64_t rows = cuda.steps.rows, size = cuda.layer.sizes.hidden_size;
  if (rows == 0) return;
  // Every row is a sequence of one step. No cell has gates that depend on the cell state before the step, so that it
  // may be anything here.
  const Tensor hidden = cuda.empty({rows, size});
  const Tensor cells = has_cell_state(cuda) ? cuda.empty({rows, size}) : Tensor();
  const Tensor sums = product(cuda, before, cuda.layer.weights[direction].weight_hh.t());
  auto params = forward_params(cuda, direction, gates, cells, sums);
  params.steps = {1, rows, rows, nullptr, nullptr, nullptr};
  params.direction = 0;
  params.sequences = rows;
  params.before = cuda.layer.projected ? nullptr : data_of(before);
  params.hidden = data_of(hidden);
  params.cell = params.cells;  // the layer is in float32 here, so that both have one type
  params.save_for_backward = true;
  check_launch(pointwise(cuda.layer.kind, cuda.element, params, cuda.stream));
}

}  // namespace fused_rnn::ops
