// The gradients of a layer's weights on a GPU, as products over all steps, whichever path the steps took.

#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "ops/cuda/layer.h"

namespace fused_rnn::ops {
namespace {

// For packed rows, where the hidden value before each lies: among the output's rows, or behind them in h0.
Tensor packed_sources(const CudaLayer& cuda, int64_t direction) {
  const Tensor& sizes = cuda.batch_sizes;
  const Tensor& first = cuda.first_rows;
  const Tensor steps = at::arange(sizes.size(0), sizes.options());
  // The number of rows is given, so that the CPU does not wait to hear it from the GPU.
  const Tensor t = at::repeat_interleave(sizes, std::optional(cuda.steps.rows)),
               row = at::arange(cuda.steps.rows, sizes.options());
  const Tensor sequence = row.sub(first.index_select(0, t));
  const Tensor before = direction == 0 ? t.sub(1) : t.add(1);
  const Tensor there = before.ge(0).logical_and(before.lt(sizes.size(0)));
  const Tensor valid = before.clamp(0, sizes.size(0) - 1);
  const Tensor runs = there.logical_and(sequence.lt(sizes.index_select(0, valid)));
  return at::where(runs, first.index_select(0, valid).add(sequence), sequence.add(cuda.steps.rows));
}

}  // namespace

Tensor hidden_before(const CudaLayer& cuda, const Tensor& output, int64_t direction) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const Tensor h0 = cuda.layer.h0.select(0, direction);
  const Tensor own =
      output.view({-1, s.directions * s.output_size}).narrow(1, direction * s.output_size, s.output_size);
  if (cuda.batch_sizes.defined()) return at::cat({own, h0}).index_select(0, packed_sources(cuda, direction));
  const int64_t others = cuda.steps.rows - cuda.steps.batch;
  if (others == 0 && !cuda.lengths.defined()) return h0;
  const Tensor before =
      direction == 0 ? at::cat({h0, own.narrow(0, 0, others)}) : at::cat({own.narrow(0, cuda.steps.batch, others), h0});
  if (!cuda.lengths.defined()) return before;
  Tensor by_step = before.view({cuda.steps.time, cuda.steps.batch, s.output_size});
  if (direction == 1) {
    const Tensor last = cuda.lengths.sub(1).eq(at::arange(cuda.steps.time, cuda.lengths.options()).unsqueeze(1));
    by_step = at::where(last.unsqueeze(2), h0, by_step);
  }
  return at::where(cuda.running(), by_step, at::zeros({}, by_step.options())).view(before.sizes());
}

namespace {

// Some rows of a weight, and those of the gates' sums that they belong to.
struct Part {
  int64_t row, of_sums, count;
};

// Of the GRU's four sums the third is the input's part of n, the fourth its recurrent part.
std::vector<Part> parts_of(const CudaLayer& cuda, bool recurrent) {
  const int64_t size = cuda.layer.sizes.hidden_size;
  if (cuda.is_lstm() || !recurrent) return {{0, 0, cuda.gates * size}};
  return {{0, 0, 2 * size}, {2 * size, 3 * size, size}};
}

// Writes the gradient of a weight, the product of those of the sums, [rows, 4 * hidden_size], and `values`; or without
// values that of a bias.
void sum_up(const CudaLayer& cuda, const Tensor& grads, const Tensor& values, bool recurrent, const Tensor& result) {
  const int64_t width = 4 * cuda.layer.sizes.hidden_size;
  Tensor all;  // with rests only: of the rounded gradients, then of the rests
  if (grads.size(1) > width)
    all = values.defined() ? cuda.product(grads.t(), values) : at::sum(grads, {0}, false, cuda.state_type);
  for (const Part& part : parts_of(cuda, recurrent)) {
    Tensor rows = result.narrow(0, part.row, part.count);
    const Tensor own = grads.narrow(1, part.of_sums, part.count);
    if (all.defined())
      at::add_out(rows, all.narrow(0, part.of_sums, part.count), all.narrow(0, width + part.of_sums, part.count));
    else if (values.defined())
      cuda.multiply(rows, own.t(), values);
    else
      at::sum_out(rows, own, {0});
  }
}

}  // namespace

Tensor input_gradient(const CudaLayer& cuda, const CudaGradients& gradients) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const int64_t width = 4 * s.hidden_size;
  const Tensor result = cuda.layer.empty(cuda.layer.input.sizes());
  const Tensor flat = result.view({-1, s.input_size});
  std::vector<Tensor> grads, weights;
  for (int64_t d = 0; d < s.directions; ++d)
    for (int64_t first = 0; first < gradients.gates.size(2); first += width) {
      grads.push_back(gradients.gates.select(0, d).narrow(1, first, cuda.gates * s.hidden_size));
      weights.push_back(cuda.weight(d, 0));
    }
  if (gradients.gates.size(2) > width) {  // one product, so that nothing is rounded on the way
    cuda.multiply(flat, at::cat(grads, 1), at::cat(weights));
  } else {
    cuda.multiply(flat, grads[0], weights[0]);
    if (s.directions == 2) cuda.multiply(flat, grads[1], weights[1], /*add=*/true);
  }
  return result;
}

std::vector<Tensor> weight_gradients(const CudaLayer& cuda, const CudaStates& states, const CudaGradients& gradients) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const int64_t size = s.hidden_size;
  std::vector<Tensor> result = empty_weight_gradients(cuda.layer, true);
  Tensor input = cuda.layer.input;
  // What lies in the padding may be NaN: times a gradient of zero it must be zero.
  if (cuda.lengths.defined()) input = at::where(cuda.running(), input, at::zeros({}, input.options()));
  input = input.reshape({-1, s.input_size});
  for (int64_t d = 0; d < s.directions; ++d) {
    Tensor* const weights = result.data() + d * cuda.layer.weights_per_direction;
    const Tensor grads = gradients.gates.select(0, d);
    const Tensor& kept = gradients.before[d];
    sum_up(cuda, grads, input, /*recurrent=*/false, weights[0]);
    sum_up(cuda, grads, kept.defined() ? kept : hidden_before(cuda, states.output, d), /*recurrent=*/true, weights[1]);
    if (cuda.layer.biased) {
      sum_up(cuda, grads, Tensor(), /*recurrent=*/false, weights[2]);
      sum_up(cuda, grads, Tensor(), /*recurrent=*/true, weights[3]);
    }
    if (cuda.layer.projected) {
      // The hidden values before the projection are not kept: o and c are.
      Tensor hidden = states.gates.select(0, d).narrow(1, 3 * size, size).mul(states.cells.select(0, d).tanh());
      if (cuda.lengths.defined())
        hidden = at::where(cuda.running().view({-1, 1}), hidden, at::zeros({}, hidden.options()));
      hidden = hidden.to(cuda.layer.type);
      cuda.multiply(weights[cuda.layer.biased ? 4 : 2], gradients.projected.select(0, d).t(), hidden);
    }
  }
  return result;
}

}  // namespace fused_rnn::ops
