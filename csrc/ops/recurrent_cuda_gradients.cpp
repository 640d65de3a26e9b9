// The gradients of a layer's weights on a GPU, as products over all steps, whichever path the steps took.

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "ops/recurrent_cuda.h"

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
    const Tensor grads = gradients.gates.select(0, d), of_input = grads.narrow(1, 0, cuda.gates * size);
    const Tensor& kept = gradients.before[d];
    const Tensor before = kept.defined() ? kept : hidden_before(cuda, states.output, d);
    at::mm_out(weights[0], of_input.t(), input);
    // Of the GRU's four sums the third is the input's part of n, the fourth its recurrent part.
    const auto recurrent = [&](const auto& body) {
      if (cuda.is_lstm()) return body(0, grads, 4 * size);
      body(0, grads.narrow(1, 0, 2 * size), 2 * size);
      body(2 * size, grads.narrow(1, 3 * size, size), size);
    };
    recurrent([&](int64_t row, const Tensor& part, int64_t count) {
      Tensor rows = weights[1].narrow(0, row, count);
      at::mm_out(rows, part.t(), before);
    });
    if (cuda.layer.biased) {
      at::sum_out(weights[2], of_input, {0});
      recurrent([&](int64_t row, const Tensor& part, int64_t count) {
        Tensor rows = weights[3].narrow(0, row, count);
        at::sum_out(rows, part, {0});
      });
    }
    if (cuda.layer.projected) {
      // The hidden values before the projection are not kept: o and c are.
      Tensor hidden = states.gates.select(0, d).narrow(1, 3 * size, size).mul(states.cells.select(0, d).tanh());
      if (cuda.lengths.defined())
        hidden = at::where(cuda.running().view({-1, 1}), hidden, at::zeros({}, hidden.options()));
      hidden = hidden.to(cuda.layer.type);
      at::mm_out(weights[cuda.layer.biased ? 4 : 2], gradients.projected.select(0, d).t(), hidden);
    }
  }
  return result;
}

}  // namespace fused_rnn::ops
