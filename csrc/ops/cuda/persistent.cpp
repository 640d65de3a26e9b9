// The persistent kernels' launches: which plan they get, and what they are given. Hidden sizes that they do not take
// are padded with units whose weights, biases and states are zero: these stay zero in every step and add nothing to the
// others, and so do their gradients. (An infinite h0 becomes NaN: it is multiplied by their weights.)

#include <ATen/ops/constant_pad_nd.h>

#include "cuda/kit/device_info.h"
#include "ops/cuda/layer.h"

namespace fused_rnn::ops {

cuda::PersistentProblem CudaLayer::problem(bool backward) const {
  const RecurrentSizes& s = layer.sizes;
  cuda::PersistentProblem problem = {};
  problem.batch = s.steps.batch;
  problem.hidden_size = s.hidden_size;
  problem.directions = s.directions;
  problem.gates = static_cast<int>(gates);
  problem.element_bytes = static_cast<int>(layer.input.element_size());
  problem.allow_tf32 = allow_tf32;
  problem.backward = backward;
  problem.projected = layer.projected;
  problem.one_step = s.steps.time == 1;
  problem.hidden_size = padded_size(problem, s.steps.time, current_plan_override());
  return problem;
}

PersistentPlan CudaLayer::plan(const cuda::PersistentProblem& problem) const {
  // Two of the same kind follow one another most of the time: the last choices are kept.
  struct Choice {
    cuda::PersistentProblem problem;
    cuda::PlanOverride plan_override;
    int64_t device;
    PersistentPlan plan;
  };
  thread_local Choice choices[16] = {};
  thread_local int64_t next = 0;
  const cuda::PlanOverride plan_override = current_plan_override();
  const int64_t device = layer.input.device().index();
  for (const Choice& c : choices)
    if (c.problem == problem && c.plan_override == plan_override && c.device == device) return c.plan;
  const PersistentPlan plan = choose_plan(problem, cuda::device_at(static_cast<int>(device)), plan_override);
  choices[next++ % 16] = {problem, plan_override, device, plan};
  return plan;
}

namespace {

// What a kernel reads of a layer and of its hidden units, padded where the kernel has more of them.
class Padding {
 public:
  Padding(const CudaLayer& cuda, int64_t hidden_size)
      : cuda_(cuda), size_(cuda.layer.sizes.hidden_size), padded_(hidden_size) {}

  int64_t hidden_size() const { return padded_; }
  // Returns a tensor in which hidden_size values follow one another again and again, with the padding behind each of
  // them. An undefined tensor stays one.
  Tensor wide(const Tensor& tensor) const {
    if (padded_ == size_ || !tensor.defined()) return aligned(tensor);
    return at::constant_pad_nd(tensor.view({-1, size_}), {0, padded_ - size_});
  }
  Tensor weight_hh(int64_t direction) const {
    const Tensor& own = cuda_.weight(direction, 1);
    if (padded_ == size_) return aligned(own);
    return at::constant_pad_nd(own.view({cuda_.gates, size_, size_}), {0, padded_ - size_, 0, padded_ - size_});
  }
  // Returns where a kernel is to write what belongs into `tensor`; narrow() brings it there.
  Tensor target(const Tensor& tensor) const {
    if (padded_ == size_ || !tensor.defined()) return tensor;
    return at::empty({tensor.numel() / size_, padded_}, tensor.options());
  }
  void narrow(const Tensor& written, const Tensor& tensor) const {
    if (padded_ != size_ && tensor.defined()) tensor.view({-1, size_}).copy_(written.narrow(1, 0, size_));
  }

 private:
  // The kernels read up to 16 bytes at a time.
  static Tensor aligned(const Tensor& tensor) {
    const bool ready = !tensor.defined() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
    return ready ? tensor : tensor.clone();
  }

  const CudaLayer& cuda_;
  int64_t size_, padded_;
};

// Keeps what is read until the launch.
class KeepAlive {
 public:
  const void* operator()(const Tensor& tensor) {
    tensors_.push_back(tensor);
    return tensor.defined() ? tensor.const_data_ptr() : nullptr;
  }

 private:
  std::vector<Tensor> tensors_;
};

// Fills in what the params of forward and backward share.
template <typename Params>
void fill(Params& params, const CudaLayer& cuda, const PersistentPlan& plan, const Padding& padding, KeepAlive& kept) {
  params.steps = cuda.steps;
  params.plan = plan;
  params.hidden_size = padding.hidden_size();
  params.directions = cuda.layer.sizes.directions;
  params.allow_tf32 = cuda.allow_tf32;
  for (int64_t d = 0; d < params.directions; ++d) params.weight_hh[d] = kept(padding.weight_hh(d));
  params.h0 = kept(padding.wide(cuda.layer.h0));
  params.c0 = kept(padding.wide(cuda.layer.c0));
}

}  // namespace

void persistent_forward(const CudaLayer& cuda, const PersistentPlan& plan, int64_t hidden_size, CudaStates& states,
                        bool save_for_backward) {
  const Padding padding(cuda, hidden_size);
  KeepAlive kept;
  PersistentForwardParams<void, void> params = {};
  fill(params, cuda, plan, padding, kept);
  for (int64_t d = 0; cuda.layer.biased && d < params.directions; ++d) {
    params.bias_ih[d] = kept(padding.wide(cuda.weight(d, 2)));
    params.bias_hh[d] = kept(padding.wide(cuda.weight(d, 3)));
  }
  // Gates are read and written where they lie, which for new memory is aligned; or in their padded copy.
  const Tensor output = padding.target(states.output), h_n = padding.target(states.h_n),
               c_n = padding.target(states.c_n), cells = padding.target(states.cells),
               gates = padding.wide(states.gates);
  params.output = data_of(output);
  params.h_n = data_of(h_n);
  params.c_n = data_of(c_n);
  params.gates = data_of(gates);
  params.cells = data_of(cells);
  params.save_for_backward = save_for_backward;
  check_launch(persistent(cuda.cell, cuda.element, params, cuda.stream));
  padding.narrow(output, states.output);
  padding.narrow(h_n, states.h_n);
  padding.narrow(c_n, states.c_n);
  padding.narrow(cells, states.cells);
  if (save_for_backward) padding.narrow(gates, states.gates);
}

void persistent_backward(const CudaLayer& cuda, const PersistentPlan& plan, int64_t hidden_size,
                         const CudaStates& states, CudaGradients& gradients) {
  const Padding padding(cuda, hidden_size);
  KeepAlive kept;
  PersistentBackwardParams<void, void> params = {};
  fill(params, cuda, plan, padding, kept);
  params.output = kept(padding.wide(states.output));
  params.gates = kept(padding.wide(states.gates));
  params.cells = kept(padding.wide(states.cells));
  params.grad_output = kept(padding.wide(gradients.output));
  params.grad_cells = kept(padding.wide(gradients.cells));
  params.grad_h_n = kept(padding.wide(gradients.h_n));
  params.grad_c_n = kept(padding.wide(gradients.c_n));
  const Tensor h0 = padding.target(gradients.h0), c0 = padding.target(gradients.c0),
               gates = padding.target(gradients.gates);
  params.grad_h0 = data_of(h0);
  params.grad_c0 = data_of(c0);
  params.grad_gates = data_of(gates);
  check_launch(persistent(cuda.cell, cuda.element, params, cuda.stream));
  padding.narrow(h0, gradients.h0);
  padding.narrow(c0, gradients.c0);
  padding.narrow(gates, gradients.gates);
}

}  // namespace fused_rnn::ops
