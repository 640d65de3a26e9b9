#include "ops/cuda/layer.h"

#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/arange.h>

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
  layer.one_step = false;
  return layer;
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
}

CudaLayer CudaLayer::widened() const {
  CudaLayer wide = *this;
  std::vector<Tensor*> tensors = {&wide.layer.input};
  for (Tensor& state : wide.layer.states) tensors.push_back(&state);
  for (DirectionWeights& weights : wide.layer.weights)
    weights.for_each([&](Tensor& weight) { tensors.push_back(&weight); });
  convert(tensors, at::kFloat);
  wide.layer.type = at::kFloat;
  wide.element = cuda::Element::kFloat32;
  return wide;
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
