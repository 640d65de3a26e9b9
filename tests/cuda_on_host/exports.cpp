// The functions that the tests call through ctypes; null, or what is wrong.

#include "cuda/kit/device_info.h"
#include "cuda/kit/launch.h"
#include "cuda/persistent/estimate.h"
#include "cuda/recurrent.h"
#include "fibers.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

extern "C" {

void choose_schedule(unsigned seed) { host::set_schedule(seed); }
void choose_fault(int number) { host::set_fault(number); }

const char* persistent_forward(int cell, int element, const PersistentForwardParams<void>* params) {
  return persistent(cells::Kind(cell), Element(element), *params, nullptr);
}
const char* persistent_backward(int cell, int element, const PersistentBackwardParams<void>* params) {
  return persistent(cells::Kind(cell), Element(element), *params, nullptr);
}
const char* pointwise_forward(int cell, int element, const PointwiseForwardParams<void, void>* params) {
  return pointwise(cells::Kind(cell), Element(element), *params, nullptr);
}
const char* pointwise_backward(int cell, int element, const PointwiseBackwardParams<void, void>* params) {
  return pointwise(cells::Kind(cell), Element(element), *params, nullptr);
}

void plan_for(const PersistentProblem* problem, const Device* device, const PlanOverride* plan_override,
              PersistentPlan* plan) {
  *plan = choose_plan(*problem, *device, *plan_override);
}
int64_t padded_size_of(const PersistentProblem* problem, int64_t time, const PlanOverride* plan_override) {
  return padded_size(*problem, time, *plan_override);
}
const char* why_stepwise_of(const PersistentProblem* problem, const PlanOverride* plan_override) {
  return why_stepwise(*problem, *plan_override);
}
bool is_built(int gates, bool backward, int element_bytes, bool cluster, int row_tiles, int batch_tiles,
              int chunks_in_registers) {
  return is_instantiated(gates, backward, element_bytes, cluster, row_tiles, batch_tiles, chunks_in_registers);
}
int64_t shared_bytes_of(const PersistentPlan* plan, const PersistentProblem* problem) {
  return shared_layout(*plan, *problem).total;
}

const char* prepare(const void* kernel, bool large_clusters) { return prepare_kernel(kernel, large_clusters); }

void device_of(int index, Device* device) { *device = device_at(index); }

double estimate_of(const PersistentPlan* plan, const PersistentProblem* problem, const Device* device) {
  return estimate_step(*plan, *problem, *device);
}

// For Python to check that its structs are laid out like these.
void struct_sizes(int64_t (&sizes)[8]) {
  sizes[0] = sizeof(PersistentForwardParams<void>), sizes[1] = sizeof(PersistentBackwardParams<void>);
  sizes[2] = sizeof(PointwiseForwardParams<void, void>), sizes[3] = sizeof(PointwiseBackwardParams<void, void>);
  sizes[4] = sizeof(PersistentPlan), sizes[5] = sizeof(PersistentProblem);
  sizes[6] = sizeof(Device), sizes[7] = sizeof(PlanOverride);
}

}  // extern "C"
