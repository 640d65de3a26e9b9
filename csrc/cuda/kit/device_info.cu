// What the CUDA runtime says of this machine.

#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

#include "cuda/kit/device_info.h"
#include "cuda/kit/platform.cuh"
#include "cuda/persistent/plan.h"

#define FUSED_RNN_TEXT_OF(number) #number
#define FUSED_RNN_TEXT(number) FUSED_RNN_TEXT_OF(number)

namespace fused_rnn::cuda {
namespace {

// Never launched. It is built for the same architectures as all kernels, so the driver's answers about it hold for
// them.
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kThreads) probe() {}

int attribute(cudaDeviceAttr which, int index) {
  int value = 0;
  cudaDeviceGetAttribute(&value, which, index);
  return value;
}

// Asks how many clusters run at once on the current device, of each number of blocks, each block on a multiprocessor of
// its own like the blocks of the persistent kernels. A slice of a GPU may have room for fewer than the whole GPU.
void ask_for_clusters(Device& device) {
  const auto kernel = reinterpret_cast<const void*>(probe);
  const auto shared_bytes = static_cast<int>(device.shared_bytes);
  cudaFuncAttributes loaded = {};
  // Not the device's own version: code for clusters is compiled for compute capability 9.0 on, and a newer GPU also
  // takes what was compiled for an older one.
  if (cudaFuncGetAttributes(&loaded, kernel) != cudaSuccess || loaded.ptxVersion < 90) return;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) != cudaSuccess ||
      cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess)
    return;
  for (int blocks = 2; blocks <= kMostClusterBlocks; ++blocks) {
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(device.shared_bytes);
    config.attrs = &cluster;
    config.numAttrs = 1;
    int at_once = 0;
    if (cudaOccupancyMaxActiveClusters(&at_once, kernel, &config) == cudaSuccess) device.clusters[blocks] = at_once;
  }
  // A cluster of one block, too, is code for clusters.
  if (device.clusters[2] > 0) device.clusters[1] = device.multiprocessors;
}

Device ask(int index) {
  int before = 0;
  cudaGetDevice(&before);
  Device device = {};
  device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
  device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
#ifdef FUSED_RNN_HOPPER
  device.hopper = attribute(cudaDevAttrComputeCapabilityMajor, index) == 9 &&
                  attribute(cudaDevAttrComputeCapabilityMinor, index) == 0;
#endif
  if (attribute(cudaDevAttrComputeCapabilityMajor, index) >= 9 && cudaSetDevice(index) == cudaSuccess)
    ask_for_clusters(device);
  cudaSetDevice(before);
  cudaGetLastError();  // clears the errors of what was refused above, so that the next call does not report them
  return device;
}

}  // namespace

const char* toolkit_version() { return FUSED_RNN_TEXT(__CUDACC_VER_MAJOR__) "." FUSED_RNN_TEXT(__CUDACC_VER_MINOR__); }

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

Device device_at(int index) {
  struct Known {
    std::once_flag asked;
    Device device;
  };
  static std::vector<Known> known(static_cast<size_t>(device_count()));
  if (index < 0 || index >= static_cast<int>(known.size())) return {};
  Known& it = known[static_cast<size_t>(index)];
  std::call_once(it.asked, [&] { it.device = ask(index); });
  return it.device;
}

}  // namespace fused_rnn::cuda
