// What the CUDA runtime says of this machine.

#include <cuda_runtime.h>

#include "cuda/device_info.h"

#define FUSED_RNN_TEXT_OF(number) #number
#define FUSED_RNN_TEXT(number) FUSED_RNN_TEXT_OF(number)

namespace fused_rnn::cuda {

const char* toolkit_version() { return FUSED_RNN_TEXT(__CUDACC_VER_MAJOR__) "." FUSED_RNN_TEXT(__CUDACC_VER_MINOR__); }

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

Device device_at(int index) {
  int multiprocessors = 0, shared_bytes = 0, major = 0;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index);
  cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  return {multiprocessors, shared_bytes, major >= 9 ? 16 : 1};
}

}  // namespace fused_rnn::cuda
