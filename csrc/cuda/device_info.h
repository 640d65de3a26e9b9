// What the CUDA runtime says of this machine.

#pragma once

namespace fused_rnn::cuda {

// Returns the CUDA version that the kernels were built with, such as "13.0"; a static string.
const char* toolkit_version();

// Returns how many GPUs the driver offers; 0 without a driver.
int device_count();

}  // namespace fused_rnn::cuda
