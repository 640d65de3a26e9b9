// What launches need of the CUDA runtime besides the launch itself.

#include <cuda_runtime_api.h>

#include <mutex>
#include <set>
#include <tuple>

#include "cuda/kit/launch.h"

namespace fused_rnn::cuda {
namespace {

cudaError_t set_attributes(const void* kernel, int device, bool large_clusters) {
  int most = 0;
  cudaFuncAttributes attributes = {};
  cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 most - static_cast<int>(attributes.sharedSizeBytes));
  if (error == cudaSuccess && large_clusters)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

}  // namespace

const char* prepare_kernel(const void* kernel, bool large_clusters) {
  static std::mutex mutex;
  static std::set<std::tuple<const void*, int, bool>> prepared;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  // Held while the attributes are set, so that no other thread launches the kernel before they are.
  const std::lock_guard lock(mutex);
  if (error == cudaSuccess && prepared.count({kernel, device, large_clusters}) > 0) return nullptr;
  if (error == cudaSuccess) error = set_attributes(kernel, device, large_clusters);
  if (error == cudaSuccess) {
    prepared.emplace(kernel, device, large_clusters);
    return nullptr;
  }
  cudaGetLastError();  // so that the next call does not report it
  return cudaGetErrorString(error);
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) != cudaSuccess ||
         status != cudaStreamCaptureStatusNone;
}

}  // namespace fused_rnn::cuda
