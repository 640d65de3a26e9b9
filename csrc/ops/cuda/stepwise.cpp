// The stepwise path on a GPU, for any size and type: one product and one pointwise kernel a step.

#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "ops/cuda/layer.h"

namespace fused_rnn::ops {
namespace {

// One step of one direction, as the host sees it.
struct HostStep {
  int64_t t, before;  // -1 for none
  int64_t first_row, sequences;
};

HostStep step_at(const CudaLayer& cuda, int64_t direction, int64_t index) {
  const Steps& steps = cuda.layer.sizes.steps;
  const int64_t t = direction == 0 ? index : steps.time - 1 - index;
  const int64_t before = index == 0 ? -1 : direction == 0 ? t - 1 : t + 1;
  return {t, before, steps.first_row(t), steps.batch_size(t)};
}

// The rows of a step in the part of [rows, directions * size] that belongs to a direction.
Tensor output_rows(const CudaLayer& cuda, const Tensor& output, int64_t direction, const HostStep& step) {
  const int64_t size = cuda.layer.sizes.output_size;
  return output.view({-1, cuda.layer.sizes.directions * size})
      .narrow(0, step.first_row, step.sequences)
      .narrow(1, direction * size, size);
}

// Which of a step's sequences run, [batch, 1]; undefined if all do.
Tensor running_in(const CudaLayer& cuda, const HostStep& step) {
  return cuda.lengths.defined() ? cuda.lengths.gt(step.t).unsqueeze(1) : Tensor();
}

// Keeps `old` for the sequences that do not run.
Tensor where_running(const Tensor& running, const Tensor& values, const Tensor& old) {
  return running.defined() ? at::where(running, values, old) : values;
}

// What the params of every step of a direction share.
template <typename Params>
Params params_of(const CudaLayer& cuda, const CudaStates& states, int64_t direction) {
  Params params = {};
  params.steps = cuda.steps;
  params.hidden_size = cuda.layer.sizes.hidden_size;
  params.directions = cuda.layer.sizes.directions;
  params.direction = direction;
  if (cuda.layer.biased) {
    params.bias_ih = data_of(cuda.weight(direction, 2));
    params.bias_hh = data_of(cuda.weight(direction, 3));
  }
  params.gates = data_of(states.gates);
  params.cells = data_of(states.cells);
  return params;
}

// The parts of the gates' sums of one direction, not rounded, for a few steps at a time: as many as fit into a few MB.
class Sums {
 public:
  // Without `before`, the hidden values before each row, there is the part of the input alone.
  Sums(const CudaLayer& cuda, int64_t direction, const Tensor& before = Tensor())
      : cuda_(cuda), direction_(direction), width_(cuda.gates * cuda.layer.sizes.hidden_size), before_(before) {
    constexpr int64_t kValues = int64_t(1) << 20;
    length_ = std::max<int64_t>(1, kValues / std::max<int64_t>(1, cuda.steps.batch * width_));
  }

  // Returns the parts of a step.
  void* of_input(const HostStep& step) { return at(of_input_, step); }
  void* recurrent(const HostStep& step) { return at(recurrent_, step); }

 private:
  void* at(const Tensor& sums, const HostStep& step) {
    if (step.t / length_ != chunk_) compute(step.t / length_);
    return data_of(sums.narrow(0, step.first_row - first_row_, step.sequences));
  }

  void compute(int64_t chunk) {
    const Steps& steps = cuda_.layer.sizes.steps;
    const int64_t last = std::min(steps.time, (chunk + 1) * length_) - 1;
    chunk_ = chunk;
    first_row_ = steps.first_row(chunk * length_);
    const int64_t rows = steps.first_row(last) + steps.batch_size(last) - first_row_;
    const Tensor input = cuda_.layer.input.view({-1, cuda_.layer.sizes.input_size});
    of_input_ = cuda_.product(input.narrow(0, first_row_, rows), cuda_.weight(direction_, 0).t());
    if (before_.defined())
      recurrent_ = cuda_.product(before_.narrow(0, first_row_, rows), cuda_.weight(direction_, 1).t());
  }

  const CudaLayer& cuda_;
  int64_t direction_, width_, length_, chunk_ = -1, first_row_ = 0;
  Tensor before_, of_input_, recurrent_;
};

void forward_direction(const CudaLayer& cuda, CudaStates& states, bool save_for_backward, int64_t d) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const bool projected = cuda.layer.projected, packed = cuda.batch_sizes.defined();
  const Tensor h0 = cuda.layer.h0.select(0, d), weight = cuda.weight(d, 1).t();
  const Tensor state = states.h_n.select(0, d);
  const Tensor hidden = projected ? cuda.layer.empty({s.steps.batch, s.hidden_size}) : state;
  const Tensor sums = cuda.empty_state({s.steps.batch, weight.size(1)});
  Tensor cell, c0, c_n;
  if (cuda.is_lstm()) c_n = states.c_n.select(0, d);
  // Of the GRU the hidden values that are not rounded, to add to step by step; none where nothing is.
  if (cuda.is_lstm() || (cuda.layer.type != cuda.state_type && s.steps.time > 1)) {
    c0 = (cuda.is_lstm() ? cuda.layer.c0 : cuda.layer.h0).select(0, d);
    cell = packed ? c0.to(cuda.state_type, false, /*copy=*/true) : cuda.empty_state(c0.sizes());
  }
  // Sequences of a packed batch start and end at several steps; else the first step reads the states where they lie.
  if (packed || projected) state.copy_(h0);
  Sums inputs(cuda, d);
  auto params = params_of<PointwiseForwardParams<void, void>>(cuda, states, d);
  params.sums = data_of(sums);
  params.hidden = data_of(hidden);
  params.cell = data_of(cell);
  params.output = projected ? nullptr : data_of(states.output);
  params.save_for_backward = save_for_backward;
  for (int64_t index = 0; index < s.steps.time; ++index) {
    const HostStep step = step_at(cuda, d, index);
    if (step.sequences == 0) continue;
    const Tensor before = index == 0 && !packed && !projected ? h0 : state;
    cuda.multiply(sums.narrow(0, 0, step.sequences), before.narrow(0, 0, step.sequences), weight);
    params.t = step.t;
    params.sequences = step.sequences;
    if (cuda.precise()) params.input_sums = inputs.of_input(step);
    params.before = projected ? nullptr : data_of(before);
    params.c0 = index == 0 && !packed ? data_of(c0) : nullptr;
    params.c_n = index == s.steps.time - 1 && !packed ? data_of(c_n) : nullptr;
    check_launch(pointwise(cuda.cell, cuda.element, params, cuda.stream));
    if (!projected) continue;
    const Tensor running = running_in(cuda, step), own = state.narrow(0, 0, step.sequences);
    const Tensor values = cuda.layer.empty({step.sequences, s.output_size});
    cuda.multiply(values, hidden.narrow(0, 0, step.sequences), cuda.weight(d, cuda.layer.biased ? 4 : 2).t());
    output_rows(cuda, states.output, d, step).copy_(where_running(running, values, at::zeros({}, values.options())));
    own.copy_(where_running(running, values, own));
  }
  if (packed && cuda.is_lstm()) c_n.copy_(cell);
}

// The gradients of a direction's states between two steps: of the hidden values the sum of the two parts that
// PointwiseBackwardParams tells of, with a projection all in `hidden`.
struct Carried {
  Tensor hidden, through, cell;

  Carried(const CudaLayer& cuda, const CudaGradients& gradients, int64_t d)
      : through(cuda.empty_state({cuda.steps.batch, cuda.layer.sizes.output_size})) {
    const bool packed = cuda.batch_sizes.defined();
    // As above: only where the first step run backwards does not read them where they lie.
    const auto initial = [&](const Tensor& gradient, at::IntArrayRef shape, bool filled) {
      if (!filled) return cuda.empty_state(shape);
      return gradient.defined() ? gradient.select(0, d).to(cuda.state_type, false, /*copy=*/true)
                                : cuda.empty_state(shape).zero_();
    };
    hidden = initial(gradients.h_n, through.sizes(), packed || cuda.layer.projected);
    if (packed) through.zero_();
    if (cuda.is_lstm()) cell = initial(gradients.c_n, {cuda.steps.batch, cuda.layer.sizes.hidden_size}, packed);
  }
};

// With a projection: returns the gradient of the hidden values before it, keeps that of the values after it, and leaves
// in carried.hidden what belongs to sequences that do not run.
Tensor through_projection(const CudaLayer& cuda, const CudaGradients& gradients, const Carried& carried, int64_t d,
                          const HostStep& step) {
  const Tensor running = running_in(cuda, step);
  Tensor own = carried.hidden.narrow(0, 0, step.sequences), total = own;
  if (gradients.output.defined()) total = total.add(output_rows(cuda, gradients.output, d, step));
  Tensor kept = gradients.projected.select(0, d).narrow(0, step.first_row, step.sequences);
  kept.copy_(where_running(running, total, at::zeros({}, total.options())));
  own.copy_(where_running(running, at::zeros({}, own.options()).expand_as(own), own));
  return cuda.product(kept, cuda.weight(d, cuda.layer.biased ? 4 : 2));
}

// Whether the gradient of h0 is that of the first step's sums times the weights, and nothing else.
bool passes_weights_alone(const CudaLayer& cuda) {
  return cuda.is_lstm() && !cuda.layer.projected && !cuda.batch_sizes.defined() && !cuda.lengths.defined();
}

// Multiplies the gradients of a step's sums by the recurrent weights, for the states before it.
void through_weights(const CudaLayer& cuda, const CudaGradients& gradients, const Carried& carried, int64_t d,
                     const HostStep& step, const Tensor& of_sums, const Tensor& weight) {
  const bool wanted = gradients.h0.defined();
  if (step.before < 0 && !wanted) return;
  if (step.before < 0 && passes_weights_alone(cuda)) {
    cuda.multiply(gradients.h0.select(0, d), of_sums, weight);
    return;
  }
  const Tensor through = carried.through.narrow(0, 0, step.sequences);
  cuda.multiply(through, of_sums, weight);
  if (cuda.layer.projected) carried.hidden.narrow(0, 0, step.sequences).add_(through);
}

// Sets the gradients of the initial states, as far as no kernel has done it.
void finish(const CudaLayer& cuda, const CudaGradients& gradients, const Carried& carried, int64_t d) {
  if (!gradients.h0.defined()) return;
  Tensor grad_h0 = gradients.h0.select(0, d);
  if (cuda.layer.projected)
    grad_h0.copy_(carried.hidden);
  else if (!passes_weights_alone(cuda))
    at::add_out(grad_h0, carried.hidden, carried.through);
  if (cuda.is_lstm() && cuda.batch_sizes.defined()) gradients.c0.select(0, d).copy_(carried.cell);
}

PointwiseBackwardParams<void, void> backward_params(const CudaLayer& cuda, const CudaStates& states,
                                                    const CudaGradients& gradients, const Carried& carried, int64_t d) {
  auto params = params_of<PointwiseBackwardParams<void, void>>(cuda, states, d);
  const auto of_direction = [&](const Tensor& all) { return all.defined() ? data_of(all.select(0, d)) : nullptr; };
  params.h0 = data_of(cuda.layer.h0);
  params.c0 = data_of(cuda.layer.c0);
  params.output = data_of(states.output);
  params.grad_output = cuda.layer.projected ? nullptr : data_of(gradients.output);
  params.grad_cells = data_of(gradients.cells);
  params.grad_h_n = of_direction(gradients.h_n);
  params.grad_c_n = of_direction(gradients.c_n);
  params.grad_h_direct = data_of(carried.hidden);
  params.grad_h_recurrent = data_of(carried.through);
  params.grad_cell = data_of(carried.cell);
  params.grad_gates = data_of(gradients.gates);
  return params;
}

void backward_direction(const CudaLayer& cuda, const CudaStates& states, CudaGradients& gradients, int64_t d) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const bool packed = cuda.batch_sizes.defined();
  const Carried carried(cuda, gradients, d);
  if (cuda.precise()) gradients.before[d] = hidden_before(cuda, states.output, d);
  Sums sums(cuda, d, gradients.before[d]);
  auto params = backward_params(cuda, states, gradients, carried, d);
  Tensor of_recurrent, grad_hidden;
  // What rounding leaves out of the gates' gradients passes the weights beside them.
  const Tensor weight = cuda.precise() ? at::cat({cuda.weight(d, 1), cuda.weight(d, 1)}) : cuda.weight(d, 1);
  if (!cuda.is_lstm()) of_recurrent = cuda.layer.empty({s.steps.batch, weight.size(0)});
  params.grad_recurrent = data_of(of_recurrent);
  params.rests = cuda.precise();
  for (int64_t index = s.steps.time - 1; index >= 0; --index) {
    const HostStep step = step_at(cuda, d, index);
    if (step.sequences == 0) continue;
    params.t = step.t;
    params.before = step.before;
    params.sequences = step.sequences;
    params.first = index == s.steps.time - 1 && !packed;
    if (cuda.precise()) {
      params.input_sums = sums.of_input(step);
      params.sums = sums.recurrent(step);
    }
    if (index == 0 && !packed && gradients.c0.defined()) params.grad_c0 = data_of(gradients.c0.select(0, d));
    if (cuda.layer.projected) {
      grad_hidden = through_projection(cuda, gradients, carried, d, step);
      params.grad_projected = data_of(grad_hidden);
    }
    check_launch(pointwise(cuda.cell, cuda.element, params, cuda.stream));
    const Tensor of_sums = cuda.is_lstm() ? gradients.gates.select(0, d) : of_recurrent;
    through_weights(cuda, gradients, carried, d, step,
                    of_sums.narrow(0, cuda.is_lstm() ? step.first_row : 0, step.sequences), weight);
  }
  finish(cuda, gradients, carried, d);
}

}  // namespace

void stepwise_forward(const CudaLayer& cuda, CudaStates& states, bool save_for_backward) {
  for (int64_t d = 0; d < cuda.layer.sizes.directions; ++d) forward_direction(cuda, states, save_for_backward, d);
}

void stepwise_backward(const CudaLayer& cuda, const CudaStates& states, CudaGradients& gradients) {
  const RecurrentSizes& s = cuda.layer.sizes;
  if (cuda.layer.projected) gradients.projected = cuda.layer.empty({s.directions, cuda.steps.rows, s.output_size});
  for (int64_t d = 0; d < s.directions; ++d) backward_direction(cuda, states, gradients, d);
}

}  // namespace fused_rnn::ops
