// Estimates of how long a step of a layer takes, for the choice of its plan.

#pragma once

#include "cuda/persistent/plan.h"

namespace fused_rnn::cuda {

// Microseconds of one step with a plan, and on the stepwise path. They leave out the products over all steps, which are
// the same on every path, and the launches: they hold for replayed CUDA graphs.
double estimate_step(const PersistentPlan& plan, const PersistentProblem& problem, const Device& device);
double estimate_stepwise(const PersistentProblem& problem);

// A number that is smaller the less time a plan should take, for plans of one path alone. It orders them better than
// estimate_step does, which is fitted to the best plan of each path for layers of many sizes.
double order_within_path(const PersistentPlan& plan, const PersistentProblem& problem, const Device& device);
// The same for plans in which warpgroups multiply.
double order_of_warpgroups(const PersistentPlan& plan, const PersistentProblem& problem);

}  // namespace fused_rnn::cuda
