// Hidden sizes that the kernels do not take are padded with units whose weights, biases and states are zero. Such units
// stay zero in every step and add nothing to the others, and the same holds for their gradients. (Only an infinite
// value in h0 becomes NaN, since it is multiplied by their weights, which are zero.)

#include "ops/cuda/persistent.h"

#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>

#include "cuda/kit/device_info.h"
#include "ops/cuda/matmul.h"

namespace fused_rnn::ops {

cuda::PlanOverride& current_plan_override() {
  static cuda::PlanOverride plan_override;
  return plan_override;
}

namespace {

// What a GPU turned out to have no room for, as a process that has a part of it learns only when it launches.
struct NoRoom {
  std::atomic<int> grid = std::numeric_limits<int>::max();     // this many blocks of a grid, or more
  std::atomic<int> cluster = std::numeric_limits<int>::max();  // this many blocks of a cluster, or more

  void add(const PersistentPlan& plan) {
    if (plan.cluster)
      cluster = std::min<int>(cluster, plan.blocks);
    else
      grid = std::min<int>(grid, plan.blocks * plan.groups * plan.directions);
  }
  void clear() { grid = cluster = std::numeric_limits<int>::max(); }
};

// Of each GPU. A device index is at most 127, and negative on the CPU, where only tests plan.
std::array<NoRoom, 128> no_room;
NoRoom& no_room_of(int64_t device) { return no_room[static_cast<size_t>(std::max<int64_t>(device, 0))]; }

std::atomic<int> most_multiprocessors = 0;

// Returns what a GPU has for plans: what it says, less what it had no room for, within the user's limit.
cuda::Device usable(int64_t device) {
  cuda::Device gpu = cuda::device_at(static_cast<int>(device));
  const NoRoom& refused = no_room_of(device);
  gpu.multiprocessors = std::min(gpu.multiprocessors, refused.grid - 1);
  for (int blocks = refused.cluster; blocks <= cuda::kMostClusterBlocks; ++blocks) gpu.clusters[blocks] = 0;
  gpu.most_blocks = most_multiprocessors;
  return gpu;
}

// Raises what a launch returned, if that is not null.
void check_plan_launch(const char* error, const CudaLayer& cuda, const PersistentPlan& plan) {
  if (error == cuda::kDoesNotFit) {
    no_room_of(cuda.layer.input.device().index()).add(plan);
    throw PlanDoesNotFit();
  }
  check_launch(error);
}

PersistentPlan plan_for(const cuda::PersistentProblem& problem, const cuda::Device& device) {
  // Most calls repeat the problem of a call shortly before, so the last choices are kept.
  struct Choice {
    cuda::PersistentProblem problem;
    cuda::PlanOverride plan_override;
    cuda::Device device;
    PersistentPlan plan;
  };
  thread_local Choice choices[16] = {};
  thread_local int64_t next = 0;
  const cuda::PlanOverride plan_override = current_plan_override();
  for (const Choice& choice : choices)
    if (choice.problem == problem && choice.plan_override == plan_override && choice.device == device)
      return choice.plan;
  const PersistentPlan plan = choose_plan(problem, device, plan_override);
  choices[next++ % 16] = {problem, plan_override, device, plan};
  return plan;
}

}  // namespace

int multiprocessor_limit() { return most_multiprocessors; }

void set_multiprocessor_limit(int limit) {
  most_multiprocessors = limit;
  for (NoRoom& refused : no_room) refused.clear();
}

PlannedPass plan_pass(const cells::Description& cell, const RecurrentSizes& sizes, int64_t element_bytes,
                      bool projected, bool backward, int64_t device) {
  cuda::PersistentProblem problem = {};
  problem.batch = sizes.steps.batch;
  problem.hidden_size = sizes.hidden_size;
  problem.directions = sizes.directions;
  problem.gates = cell.gates;
  problem.element_bytes = static_cast<int>(element_bytes);
  problem.allow_tf32 = allows_tf32(element_bytes);
  problem.backward = backward;
  problem.projected = projected;
  problem.one_step = sizes.steps.time == 1;
  problem.hidden_size = padded_size(problem, sizes.steps.time, current_plan_override());
  const cuda::Device gpu = usable(device);
  return {problem, gpu, plan_for(problem, gpu)};
}

namespace {

// Brings tensors into the form that a kernel takes: with its hidden size, which may be larger than the layer's.
class Padding {
 public:
  Padding(const CudaLayer& cuda, int64_t hidden_size)
      : cuda_(cuda), size_(cuda.layer.sizes.hidden_size), padded_(hidden_size) {}

  int64_t hidden_size() const { return padded_; }
  // Returns a tensor, which consists of groups of hidden_size values, with the padding behind each group. An undefined
  // tensor stays undefined.
  Tensor pad(const Tensor& tensor) const {
    if (padded_ == size_ || !tensor.defined()) return aligned(tensor);
    return at::constant_pad_nd(tensor.view({-1, size_}), {0, padded_ - size_});
  }
  // Returns a direction's weight_hh with padded rows and columns.
  Tensor pad_weight_hh(int64_t direction) const {
    const Tensor& own = cuda_.layer.weights[direction].weight_hh;
    if (padded_ == size_) return aligned(own);
    return at::constant_pad_nd(own.view({-1, size_, size_}), {0, padded_ - size_, 0, padded_ - size_});
  }
  // Returns the memory into which a kernel writes the values of `tensor`; unpad() copies them from there, if that is
  // another one.
  Tensor target(const Tensor& tensor) const {
    if (padded_ == size_ || !tensor.defined()) return tensor;
    return at::empty({tensor.numel() / size_, padded_}, tensor.options());
  }
  void unpad(const Tensor& written, const Tensor& tensor) const {
    if (padded_ != size_ && tensor.defined()) tensor.view({-1, size_}).copy_(written.narrow(1, 0, size_));
  }

 private:
  // Returns the tensor in memory that is aligned as the kernels need it, which read up to 16 bytes at a time.
  static Tensor aligned(const Tensor& tensor) {
    const bool ready = !tensor.defined() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
    return ready ? tensor : tensor.clone();
  }

  const CudaLayer& cuda_;
  int64_t size_, padded_;
};

// Holds what a kernel reads until it is launched; torch gives the memory to later kernels of the same stream only.
class KeepAlive {
 public:
  const void* operator()(const Tensor& tensor) {
    tensors_.push_back(tensor);
    return tensor.defined() ? tensor.const_data_ptr() : nullptr;
  }

 private:
  std::vector<Tensor> tensors_;
};

// Sets what the params of forward and backward share.
template <typename Params>
void fill(Params& params, const CudaLayer& cuda, const PlannedPass& pass, const Padding& padding,
          KeepAlive& keep_alive) {
  params.steps = cuda.steps;
  params.plan = pass.plan;
  params.hidden_size = padding.hidden_size();
  params.directions = cuda.layer.sizes.directions;
  params.full_precision = !cuda.allow_tf32;
  for (int64_t d = 0; d < params.directions; ++d) params.weight_hh[d] = keep_alive(padding.pad_weight_hh(d));
  params.h0 = keep_alive(padding.pad(cuda.layer.h0()));
  params.c0 = keep_alive(padding.pad(cuda.layer.c0()));
  params.resets = cuda.resets();
  params.reset_h = keep_alive(padding.pad(get(cuda.layer.reset_states, 0)));
  params.reset_c = keep_alive(padding.pad(get(cuda.layer.reset_states, 1)));
}

}  // namespace

void persistent_forward(const CudaLayer& cuda, const PlannedPass& pass, RecurrentOutputs& outputs,
                        bool save_for_backward) {
  const Padding padding(cuda, pass.problem.hidden_size);
  KeepAlive keep_alive;
  PersistentForwardParams<void> params = {};
  fill(params, cuda, pass, padding, keep_alive);
  for (int64_t d = 0; cuda.layer.biased && d < params.directions; ++d) {
    params.bias_ih[d] = keep_alive(padding.pad(cuda.layer.weights[d].bias_ih));
    params.bias_hh[d] = keep_alive(padding.pad(cuda.layer.weights[d].bias_hh));
  }
  const Tensor h_n = outputs.states[0], c_n = get(outputs.states, 1), cells = get(outputs.history, 0);
  const Tensor padded_output = padding.target(outputs.output), padded_h_n = padding.target(h_n),
               padded_c_n = padding.target(c_n), padded_cells = padding.target(cells);
  // The kernel reads the gates and writes them to the same memory, which torch aligned; or to that of the padded copy.
  const Tensor gates = padding.pad(outputs.gates);
  params.output = data_of(padded_output);
  params.h_n = data_of(padded_h_n);
  params.c_n = data_of(padded_c_n);
  params.gates = data_of(gates);
  params.cells = data_of(padded_cells);
  params.save_for_backward = save_for_backward;
  check_plan_launch(persistent(cuda.layer.kind, cuda.element, params, cuda.stream), cuda, pass.plan);
  padding.unpad(padded_output, outputs.output);
  padding.unpad(padded_h_n, h_n);
  padding.unpad(padded_c_n, c_n);
  if (!save_for_backward) return;
  padding.unpad(padded_cells, cells);
  padding.unpad(gates, outputs.gates);
}

void persistent_backward(const CudaLayer& cuda, const PlannedPass& pass, const RecurrentGradients& gradients,
                         const RecurrentSaved& saved, StepGradients& steps) {
  const Padding padding(cuda, pass.problem.hidden_size);
  KeepAlive keep_alive;
  PersistentBackwardParams<void> params = {};
  fill(params, cuda, pass, padding, keep_alive);
  params.output = keep_alive(padding.pad(saved.output));
  params.gates = keep_alive(padding.pad(saved.gates));
  params.cells = keep_alive(padding.pad(get(saved.history, 0)));
  params.grad_output = keep_alive(padding.pad(gradients.output));
  params.grad_cells = keep_alive(padding.pad(get(gradients.history, 0)));
  params.grad_h_n = keep_alive(padding.pad(gradients.states[0]));
  params.grad_c_n = keep_alive(padding.pad(get(gradients.states, 1)));
  const Tensor h0 = padding.target(steps.h0), c0 = padding.target(steps.c0), gates = padding.target(steps.gates);
  params.grad_h0 = data_of(h0);
  params.grad_c0 = data_of(c0);
  params.grad_gates = data_of(gates);
  const Tensor reset_h = padding.target(steps.reset_h), reset_c = padding.target(steps.reset_c);
  for (const Tensor& gradient : {reset_h, reset_c})  // to which the kernel adds
    if (gradient.defined()) Tensor(gradient).zero_();
  params.grad_reset_h = static_cast<float*>(data_of(reset_h));
  params.grad_reset_c = static_cast<float*>(data_of(reset_c));
  check_plan_launch(persistent(cuda.layer.kind, cuda.element, params, cuda.stream), cuda, pass.plan);
  padding.unpad(h0, steps.h0);
  padding.unpad(c0, steps.c0);
  padding.unpad(gates, steps.gates);
  padding.unpad(reset_h, steps.reset_h);
  padding.unpad(reset_c, steps.reset_c);
}

}  // namespace fused_rnn::ops
