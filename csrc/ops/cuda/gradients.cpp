#include "ops/cuda/gradients.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "ops/cuda/matmul.h"

namespace fused_rnn::ops {
namespace {

Tensor zero_like(const Tensor& tensor) { return at::zeros({}, tensor.options()); }

// Returns the hidden values before each row of a direction, as if none were replaced.
Tensor carried_before(const CudaLayer& cuda, const Tensor& output, int64_t direction) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const Tensor h0 = cuda.layer.h0().select(0, direction);
  // One step, for which the output may be undefined, begins with h0. If it is packed, sequences may lack it.
  if (cuda.steps.time == 1) {
    if (!cuda.lengths.defined()) return h0.narrow(0, 0, cuda.steps.rows);
    return at::where(cuda.running().view({-1, 1}), h0, zero_like(h0));
  }
  const Tensor own =
      output.view({-1, s.directions * s.output_size}).narrow(1, direction * s.output_size, s.output_size);
  if (cuda.batch_sizes.defined()) return at::cat({own, h0}).index_select(0, packed_sources(cuda, direction));
  const int64_t others = cuda.steps.rows - cuda.steps.batch;
  const Tensor before =
      direction == 0 ? at::cat({h0, own.narrow(0, 0, others)}) : at::cat({own.narrow(0, cuda.steps.batch, others), h0});
  if (!cuda.lengths.defined()) return before;
  Tensor by_step = before.view({cuda.steps.time, cuda.steps.batch, s.output_size});
  if (direction == 1) {
    const Tensor last = cuda.lengths.sub(1).eq(at::arange(cuda.steps.time, cuda.lengths.options()).unsqueeze(1));
    by_step = at::where(last.unsqueeze(2), h0, by_step);
  }
  return at::where(cuda.running(), by_step, zero_like(by_step)).view(before.sizes());
}

Tensor hidden_before(const CudaLayer& cuda, const Tensor& output, int64_t direction) {
  const Tensor before = carried_before(cuda, output, direction);
  if (!cuda.begins.defined()) return before;
  return at::where(cuda.begins.select(0, direction).unsqueeze(1), cuda.replacing_hidden(direction), before);
}

// Neighbouring gates, and the sums of which their gradients are those.
struct Run {
  int64_t gate, sum, count;
};

// Returns the sums to which the gates' input parts go, or their recurrent parts, in runs as long as possible.
std::vector<Run> runs_of(const cells::Description& cell, bool recurrent) {
  if (!recurrent) return {{0, 0, cell.gates}};
  std::vector<Run> runs;
  for (int64_t gate = 0; gate < cell.gates; ++gate) {
    const int64_t sum = cell.hidden_sums[gate];
    if (!runs.empty() && sum == runs.back().sum + runs.back().count)
      ++runs.back().count;
    else
      runs.push_back({gate, sum, 1});
  }
  return runs;
}

// Writes a product of a weight's gradient, a sum over all rows of all steps. In exact float32 it is computed in pieces
// of 128 to 1024 rows, 8 of them where there are enough rows: added up in one chain, so many values lose more in
// roundings than in torch.nn, which adds up each step by itself. In other precisions other roundings are far larger.
void multiply_all_steps(const CudaLayer& cuda, const Tensor& result, const Tensor& sums, const Tensor& values) {
  constexpr int64_t kPieces = 8, kFewestRows = 128, kMostRows = 1024;
  const int64_t rows = values.size(0);
  const int64_t wanted = std::max(std::min(rows / kFewestRows, kPieces), rows / kMostRows);
  const int64_t pieces = cuda.exact_float32 ? std::max<int64_t>(wanted, 1) : 1;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t first = rows * piece / pieces, count = rows * (piece + 1) / pieces - first;
    multiply(cuda, result, sums.narrow(0, first, count).t(), values.narrow(0, first, count), /*add=*/piece > 0);
  }
}

// Returns the gradient of a weight, the product of the gradients of the sums, [rows, sums * hidden_size], and the
// values that were multiplied by it.
Tensor matrix_gradient(const CudaLayer& cuda, const Tensor& sums, const Tensor& values, bool recurrent) {
  const int64_t size = cuda.layer.sizes.hidden_size;
  const Tensor result = cuda.empty({cuda.gates_size(), values.size(1)});
  for (const Run& run : runs_of(cuda.layer.cell, recurrent))
    multiply_all_steps(cuda, result.narrow(0, run.gate * size, run.count * size),
                       sums.narrow(1, run.sum * size, run.count * size), values);
  return result;
}

// Returns the gradient of a bias.
Tensor bias_gradient(const CudaLayer& cuda, const Tensor& sums, bool recurrent) {
  const int64_t size = cuda.layer.sizes.hidden_size;
  const Tensor result = cuda.empty({cuda.gates_size()});
  for (const Run& run : runs_of(cuda.layer.cell, recurrent)) {
    Tensor rows = result.narrow(0, run.gate * size, run.count * size);
    at::sum_out(rows, sums.narrow(1, run.sum * size, run.count * size), {0});
  }
  return result;
}

// Returns the gradient of the projection. The hidden values before it are not saved: they are the product of the output
// gate and tanh of the cell state.
Tensor projection_gradient(const CudaLayer& cuda, const RecurrentSaved& saved, const Tensor& projected,
                           int64_t direction) {
  const int64_t size = cuda.layer.sizes.hidden_size;
  const Tensor output_gate = saved.gates.select(0, direction).narrow(1, cuda.layer.cell.output_gate * size, size);
  Tensor hidden = output_gate.mul(saved.history[0].select(0, direction).tanh());
  if (cuda.lengths.defined()) hidden = at::where(cuda.running().view({-1, 1}), hidden, zero_like(hidden));
  const Tensor result = cuda.empty({cuda.layer.sizes.output_size, size});
  multiply_all_steps(cuda, result, projected, hidden.to(cuda.layer.type));
  return result;
}

}  // namespace

std::array<Tensor, 2> hidden_before(const CudaLayer& cuda, const Tensor& output) {
  std::array<Tensor, 2> before;
  for (int64_t d = 0; d < cuda.layer.sizes.directions; ++d) before[d] = hidden_before(cuda, output, d);
  return before;
}

Tensor input_gradient(const CudaLayer& cuda, const StepGradients& steps) {
  const RecurrentSizes& s = cuda.layer.sizes;
  const Tensor result = cuda.empty(cuda.layer.input.sizes());
  for (int64_t d = 0; d < s.directions; ++d)
    multiply(cuda, result.view({-1, s.input_size}), steps.gates.select(0, d).narrow(1, 0, cuda.gates_size()),
             cuda.layer.weights[d].weight_ih, /*add=*/d > 0);
  return result;
}

std::array<DirectionWeights, 2> weight_gradients(const CudaLayer& cuda, const RecurrentSaved& saved,
                                                 const StepGradients& steps, const std::array<Tensor, 2>& before) {
  Tensor input = cuda.layer.input;
  // Input that belongs to no step may be NaN; its product with a gradient of zero must be zero.
  if (cuda.lengths.defined()) input = at::where(cuda.running(), input, zero_like(input));
  input = input.view({-1, cuda.layer.sizes.input_size});
  std::array<DirectionWeights, 2> result;
  for (int64_t d = 0; d < cuda.layer.sizes.directions; ++d) {
    const Tensor sums = steps.gates.select(0, d);
    DirectionWeights& gradients = result[d];
    gradients.weight_ih = matrix_gradient(cuda, sums, input, /*recurrent=*/false);
    gradients.weight_hh = matrix_gradient(cuda, sums, before[d], /*recurrent=*/true);
    if (cuda.layer.biased) {
      gradients.bias_ih = bias_gradient(cuda, sums, /*recurrent=*/false);
      gradients.bias_hh = bias_gradient(cuda, sums, /*recurrent=*/true);
    }
    if (cuda.layer.projected) gradients.weight_hr = projection_gradient(cuda, saved, steps.projected.select(0, d), d);
  }
  return result;
}

}  // namespace fused_rnn::ops
