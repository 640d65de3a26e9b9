// The plain path on a GPU, for any size and type: one product and one pointwise kernel a step.

#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "ops/recurrent_cuda.h"

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

template <typename Params>
void fill(Params& params, const CudaLayer& cuda, int64_t direction, const HostStep& step) {
  params.steps = cuda.steps;
  params.t = step.t;
  params.sequences = step.sequences;
  params.hidden_size = cuda.layer.sizes.hidden_size;
  params.directions = cuda.layer.sizes.directions;
  params.direction = direction;
}

// The gates' gradients of a step times the recurrent weights.
Tensor through_weights(const CudaLayer& cuda, const Tensor& grads, int64_t direction) {
  const int64_t size = cuda.layer.sizes.hidden_size;
  const Tensor& weight = cuda.weight(direction, 1);
  if (cuda.is_lstm()) return cuda.product(grads, weight);
  return cuda.product(grads.narrow(1, 0, 2 * size), weight.narrow(0, 0, 2 * size))
      .add_(cuda.product(grads.narrow(1, 3 * size, size), weight.narrow(0, 2 * size, size)));
}

}  // namespace

void plain_forward(const CudaLayer& cuda, CudaStates& states, bool keep) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const bool projected = cuda.layer.projected;
  for (int64_t d = 0; d < s.directions; ++d) {
    Tensor state = cuda.layer.h0.select(0, d).clone();
    Tensor hidden = projected ? cuda.layer.empty({s.steps.batch, s.hidden_size}) : state;
    // Of the GRU the hidden values that are not rounded; none where nothing is.
    Tensor cell;
    if (cuda.is_lstm() || cuda.layer.type != cuda.state_type)
      cell = (cuda.is_lstm() ? cuda.layer.c0 : cuda.layer.h0).select(0, d).to(cuda.state_type, false, /*copy=*/true);
    const Tensor weight = cuda.weight(d, 1).t();
    for (int64_t index = 0; index < s.steps.time; ++index) {
      const HostStep step = step_at(cuda, d, index);
      const Tensor sums = cuda.product(state.narrow(0, 0, step.sequences), weight);
      PointwiseForward<void, void> params = {};
      fill(params, cuda, d, step);
      params.sums = data_of(sums);
      if (cuda.layer.biased) {
        params.bias_ih = data_of(cuda.weight(d, 2));
        params.bias_hh = data_of(cuda.weight(d, 3));
      }
      params.hidden = data_of(hidden);
      params.cell = data_of(cell);
      params.output = projected ? nullptr : data_of(states.output);
      params.gates = data_of(states.gates);
      params.cells = data_of(states.cells);
      params.keep = keep;
      check_launch(pointwise(cuda.cell, cuda.element, params, cuda.stream));
      if (!projected) continue;
      const Tensor running = running_in(cuda, step), own = state.narrow(0, 0, step.sequences);
      const Tensor values = at::mm(hidden.narrow(0, 0, step.sequences), cuda.weight(d, cuda.layer.biased ? 4 : 2).t());
      output_rows(cuda, states.output, d, step).copy_(where_running(running, values, at::zeros({}, values.options())));
      own.copy_(where_running(running, values, own));
    }
    states.h_n.select(0, d).copy_(state);
    if (cuda.is_lstm()) states.c_n.select(0, d).copy_(cell);
  }
}

void plain_backward(const CudaLayer& cuda, const CudaStates& states, CudaGradients& gradients) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const bool projected = cuda.layer.projected;
  if (projected) gradients.projected = cuda.layer.empty({s.directions, cuda.steps.rows, s.output_size});
  const auto initial = [&](const Tensor& gradient, int64_t d, int64_t size) {
    return gradient.defined() ? gradient.select(0, d).to(cuda.state_type, false, /*copy=*/true)
                              : cuda.empty_state({s.steps.batch, size}).zero_();
  };
  for (int64_t d = 0; d < s.directions; ++d) {
    Tensor grad_state = initial(gradients.h_n, d, s.output_size);
    Tensor grad_cell = cuda.is_lstm() ? initial(gradients.c_n, d, s.hidden_size) : Tensor();
    for (int64_t index = s.steps.time - 1; index >= 0; --index) {
      const HostStep step = step_at(cuda, d, index);
      Tensor carried = grad_state.narrow(0, 0, step.sequences), grad_hidden;
      PointwiseBackward<void, void> params = {};
      fill(params, cuda, d, step);
      params.before = step.before;
      params.h0 = cuda.layer.h0.const_data_ptr();
      if (cuda.is_lstm()) params.c0 = cuda.layer.c0.const_data_ptr();
      params.output = data_of(states.output);
      params.gates = data_of(states.gates);
      params.cells = data_of(states.cells);
      params.grad_cells = data_of(gradients.cells);
      params.grad_hidden = data_of(grad_state);
      params.grad_cell = data_of(grad_cell);
      params.grad_gates = data_of(gradients.gates);
      const Tensor running = running_in(cuda, step);
      if (projected) {
        Tensor total = carried;
        if (gradients.output.defined()) total = total.add(output_rows(cuda, gradients.output, d, step));
        Tensor kept = gradients.projected.select(0, d).narrow(0, step.first_row, step.sequences);
        kept.copy_(where_running(running, total, at::zeros({}, total.options())));
        grad_hidden = cuda.product(kept, cuda.weight(d, cuda.layer.biased ? 4 : 2));
        params.grad_projected = data_of(grad_hidden);
        carried.copy_(where_running(running, at::zeros({}, carried.options()).expand_as(carried), carried));
      } else {
        params.grad_output = data_of(gradients.output);
      }
      check_launch(pointwise(cuda.cell, cuda.element, params, cuda.stream));
      const Tensor grads = gradients.gates.select(0, d).narrow(0, step.first_row, step.sequences);
      carried.add_(through_weights(cuda, grads, d));
    }
    gradients.h0.select(0, d).copy_(grad_state);
    if (cuda.is_lstm()) gradients.c0.select(0, d).copy_(grad_cell);
  }
}

}  // namespace fused_rnn::ops
