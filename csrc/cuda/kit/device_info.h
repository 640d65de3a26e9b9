// What the CUDA runtime says of this machine.

#pragma once

#include "cuda/persistent/plan.h"

namespace fused_rnn::cuda {

// Returns the CUDA version that the kernels were built with, such as "13.0"; a static string.
const char* toolkit_version();

// Returns how many GPUs the driver offers; 0 without a driver.
int device_count();

// Returns what device `index` of the machine has for kernels: asked for once, then remembered.
Device device_at(int index);

}  // namespace fused_rnn::cuda
