// The path on which one kernel runs all steps of a layer, and the choice between it and the stepwise path.

#pragma once

#include "ops/cuda/layer.h"

namespace fused_rnn::ops {

// Which plans may be chosen, for tests and tuning. It holds for all threads, and must not change during a call.
cuda::PlanOverride& current_plan_override();

// How many multiprocessors of a GPU the thread blocks of one launch of a persistent kernel may take; 0 for all. It
// holds for all threads and GPUs. Setting it also lets plans be tried again that a GPU had no room for.
int multiprocessor_limit();
void set_multiprocessor_limit(int limit);

// Raised where the GPU has no room for the blocks of a plan, before anything is computed. The next plan of that GPU
// has fewer blocks, or is the stepwise path.
struct PlanDoesNotFit {};

// One pass over a layer: what a persistent kernel would be given, perhaps with a padded hidden size, and its plan,
// which has no blocks where the stepwise path is to be taken.
struct PlannedPass {
  cuda::PersistentProblem problem;
  cuda::Device device;
  PersistentPlan plan;

  bool stepwise() const { return plan.blocks == 0; }
};

// Plans a pass over a layer whose tensors have elements of so many bytes, on the GPU with index `device`.
PlannedPass plan_pass(const cells::Description& cell, const RecurrentSizes& sizes, int64_t element_bytes,
                      bool projected, bool backward, int64_t device);

// Runs all steps. On entry outputs.gates hold the input's part of the gates' sums; on return the rest is written. May
// raise PlanDoesNotFit.
void persistent_forward(const CudaLayer& cuda, const PlannedPass& pass, RecurrentOutputs& outputs,
                        bool save_for_backward);

// Runs all steps backwards. All of `steps` that is defined is written; both states must be. May raise PlanDoesNotFit.
void persistent_backward(const CudaLayer& cuda, const PlannedPass& pass, const RecurrentGradients& gradients,
                         const RecurrentSaved& saved, StepGradients& steps);

}  // namespace fused_rnn::ops
