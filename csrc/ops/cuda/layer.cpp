#include "ops/cuda/layer.h"

#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "cuda/kit/launch.h"
#include "ops/cuda/matmul.h"
#include "ops/cuda/torch_cuda.h"

namespace fused_rnn::ops {
namespace {

static_assert(
    [] {
      for (const cells::Description& cell : cells::kDescriptions)
        if (cell.cell_states() > 1) return false;
      return true;
    }(),
    "the params of the CUDA kernels have room for one state beside h");

cuda::Element element_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return cuda::Element::kFloat32;
    case at::kDouble:
      return cuda::Element::kFloat64;
    case at::kBFloat16:
      return cuda::Element::kBFloat16;
    default:
      return cuda::Element::kFloat16;
  }
}

// Returns the layer with dense tensors, and with dimensions for time and directions.
RecurrentLayer dense_sequence(RecurrentLayer layer) {
  layer.input = (layer.one_step ? layer.input.unsqueeze(0) : layer.input).contiguous();
  for (Tensor& state : layer.states) state = (layer.one_step ? state.unsqueeze(0) : state).contiguous();
  for (DirectionWeights& weights : layer.weights)
    weights.for_each([](Tensor& weight) { weight = weight.contiguous(); });
  for (Tensor& state : layer.reset_states) state = state.contiguous();
  layer.one_step = false;
  return layer;
}

// The step and the sequence of each packed row.
struct PackedRows {
  Tensor t, sequence;
};

PackedRows packed_rows(const CudaLayer& cuda) {
  const Tensor& sizes = cuda.batch_sizes;
  // The number of rows is given, so that the CPU does not wait to hear it from the GPU.
  const Tensor t = at::repeat_interleave(sizes, std::optional(cuda.steps.rows));
  return {t, at::arange(cuda.steps.rows, sizes.options()).sub(cuda.first_rows.index_select(0, t))};
}

// Returns where the states of each direction are replaced, [directions, rows]. The second one, which runs backwards,
// replaces those of a sequence before a step if the sequence has the next step and that has a reset.
Tensor begins_of(const CudaLayer& cuda) {
  const RecurrentLayer& layer = cuda.layer;
  const int64_t rows = cuda.steps.rows, directions = layer.sizes.directions;
  Tensor resets = layer.resets;
  if (cuda.lengths.defined()) resets = resets.logical_and(cuda.running().squeeze(2));
  resets = resets.reshape({1, rows});
  if (directions == 1) return resets.contiguous();
  const Tensor none = at::zeros({1, cuda.steps.batch}, resets.options());
  const Tensor and_none = at::cat({resets, none}, 1);
  const Tensor next = cuda.batch_sizes.defined() ? and_none.index_select(1, packed_sources(cuda, 1))
                                                 : and_none.narrow(1, cuda.steps.batch, rows);
  return at::cat({resets, next});
}

}  // namespace

CudaLayer::CudaLayer(const RecurrentLayer& given)
    : layer(dense_sequence(given)),
      element(element_of(layer.type)),
      state_type(layer.accumulation_type()),
      allow_tf32(allows_tf32(layer.input.element_size())),
      exact_float32(layer.type == at::kFloat && !allow_tf32),
      steps{layer.sizes.steps.time, layer.sizes.steps.batch, layer.rows(), nullptr, nullptr, nullptr},
      stream(current_stream(layer.input.device())) {
  const at::Device device = layer.input.device();
  if (layer.lengths.defined()) {
    lengths = layer.lengths.contiguous();
    steps.lengths = lengths.const_data_ptr<int64_t>();
  }
  if (layer.batch_sizes.defined()) {
    // A replay would copy again from memory that has another use by then. What frees memory together with a graph may
    // not call CUDA, so that the graph cannot keep pinned memory either.
    TORCH_CHECK(!cuda::is_capturing(stream),
                "a PackedSequence cannot be captured in a CUDA graph, since its batch_sizes lie on the CPU: give the "
                "padded input and `lengths` that lie on the GPU");
    // One copy brings both to the GPU, from pinned memory: then the CPU does not wait for the GPU to come to it.
    const Tensor both = at::empty({2, steps.time}, layer.batch_sizes.options().pinned_memory(device.is_cuda()));
    both.select(0, 0).copy_(layer.batch_sizes);
    both.select(0, 1).copy_(layer.first_rows);
    const Tensor there = both.to(device, /*non_blocking=*/true);
    batch_sizes = there.select(0, 0);
    first_rows = there.select(0, 1);
    steps.batch_sizes = batch_sizes.const_data_ptr<int64_t>();
    steps.first_rows = first_rows.const_data_ptr<int64_t>();
  }
  if (layer.resets.defined()) begins = begins_of(*this);
}

Resets CudaLayer::resets() const {
  if (!begins.defined()) return {};
  return {begins.const_data_ptr<bool>(), steps.rows, layer.sizes.directions, steps.batch,
          layer.every_step_has_reset_states()};
}

Tensor CudaLayer::replacing_hidden(int64_t direction) const {
  const int64_t size = layer.sizes.output_size;
  if (layer.reset_states.empty()) return at::zeros({}, layer.input.options()).expand({steps.rows, size});
  const Tensor& states = layer.reset_states[0];
  Tensor by_step = states.select(-3, direction);  // [batch, size] or [time, batch, size]
  if (!layer.every_step_has_reset_states())
    by_step = by_step.expand({steps.time, steps.batch, size});
  else if (direction == 1)  // those of a step replace others before the step before it; the last row is of no use
    by_step = at::cat({by_step.narrow(0, 1, steps.time - 1), by_step.narrow(0, 0, 1)});
  by_step = by_step.reshape({steps.time * steps.batch, size});
  if (!batch_sizes.defined()) return by_step;
  const auto [t, sequence] = packed_rows(*this);
  return by_step.index_select(0, t.mul(steps.batch).add(sequence));
}

CudaLayer CudaLayer::widened() const {
  CudaLayer wide = *this;
  std::vector<Tensor*> tensors = {&wide.layer.input};
  for (Tensor& state : wide.layer.states) tensors.push_back(&state);
  for (Tensor& state : wide.layer.reset_states) tensors.push_back(&state);
  for (DirectionWeights& weights : wide.layer.weights)
    weights.for_each([&](Tensor& weight) { tensors.push_back(&weight); });
  convert(tensors, at::kFloat);
  wide.layer.type = at::kFloat;
  wide.element = cuda::Element::kFloat32;
  return wide;
}

Tensor packed_sources(const CudaLayer& cuda, int64_t direction) {
  const Tensor &sizes = cuda.batch_sizes, &first = cuda.first_rows;
  const auto [t, sequence] = packed_rows(cuda);
  const Tensor before = direction == 0 ? t.sub(1) : t.add(1);
  const Tensor there = before.ge(0).logical_and(before.lt(sizes.size(0)));
  const Tensor valid = before.clamp(0, sizes.size(0) - 1);
  const Tensor runs = there.logical_and(sequence.lt(sizes.index_select(0, valid)));
  return at::where(runs, first.index_select(0, valid).add(sequence), sequence.add(cuda.steps.rows));
}

bool CudaLayer::stepwise_in_float32() const {
  return cuda::stepwise_in_float32(layer.sizes.hidden_size, static_cast<int>(layer.input.element_size()));
}

Tensor CudaLayer::running() const {
  return at::arange(steps.time, lengths.options()).unsqueeze(1).lt(lengths).unsqueeze(2);
}

void convert(const std::vector<Tensor*>& tensors, at::ScalarType type) {
  std::vector<Tensor> before, after;
  for (Tensor* const tensor : tensors) {
    if (!tensor->defined() || tensor->scalar_type() == type) continue;
    before.push_back(*tensor);
    *tensor = at::empty(tensor->sizes(), tensor->options().dtype(type));
    after.push_back(*tensor);
  }
  if (!after.empty()) at::_foreach_copy_(after, before);
}

void check_launch(const char* error) {
  TORCH_CHECK(error == nullptr, "a CUDA kernel of fused_rnn could not be started: ", error);
}

}  // namespace fused_rnn::ops
