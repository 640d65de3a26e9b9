// Stands in for the CUDA runtime, as far as device_info.cu asks it: GPUs of which a test says what they have.

// Hidden, for the linker to take these and not those of a CUDA build of torch.
#pragma GCC visibility push(hidden)

#include <cuda_runtime_api.h>

#include <atomic>

namespace {

struct Gpu {
  int multiprocessors, shared_bytes, major;
  int ptx_version;  // of what was loaded
  int room;         // blocks of a cluster that fit; 0 if even asking is an error
  int asked;        // how often it was asked how many blocks fit
};
constexpr int kGpus = 16;
Gpu gpus[kGpus] = {};
constexpr int kStaticShared = 1024;  // shared memory of a kernel besides what a launch asks for
int current = 0, granted_shared = 0, granted_blocks = 8;
std::atomic<int> attributes_set = 0;

}  // namespace

cudaError_t cudaGetDeviceCount(int* count) { return *count = kGpus, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  current = device, granted_shared = 48 * 1024, granted_blocks = 8;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an error"; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  const Gpu& gpu = gpus[device];
  if (which == cudaDevAttrMultiProcessorCount) return *value = gpu.multiprocessors, cudaSuccess;
  if (which == cudaDevAttrMaxSharedMemoryPerBlockOptin) return *value = gpu.shared_bytes, cudaSuccess;
  if (which == cudaDevAttrComputeCapabilityMajor) return *value = gpu.major, cudaSuccess;
  return cudaErrorInvalidValue;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* /*kernel*/) {
  attributes->sharedSizeBytes = kStaticShared;
  attributes->ptxVersion = gpus[current].ptx_version;
  attributes->binaryVersion = gpus[current].major * 10;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* /*kernel*/, cudaFuncAttribute which, int value) {
  attributes_set += 1;
  if (which == cudaFuncAttributeNonPortableClusterSizeAllowed) granted_blocks = value ? 16 : 8;
  if (which == cudaFuncAttributeMaxDynamicSharedMemorySize) granted_shared = value;
  return 0 <= granted_shared && granted_shared <= gpus[current].shared_bytes ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t /*stream*/, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* /*kernel*/, const cudaLaunchConfig_t* config) {
  Gpu& gpu = gpus[current];
  const int blocks = static_cast<int>(config->attrs[0].val.clusterDim.x);
  gpu.asked += 1;
  if (gpu.room == 0 || config->numAttrs != 1 || config->attrs[0].id != cudaLaunchAttributeClusterDimension ||
      config->dynamicSmemBytes > static_cast<size_t>(granted_shared))
    return cudaErrorInvalidValue;
  if (blocks > granted_blocks || config->gridDim.x % static_cast<unsigned>(blocks) != 0)
    return cudaErrorInvalidClusterSize;
  return *clusters = gpu.room / blocks, cudaSuccess;
}

#pragma GCC visibility pop

// Says what the GPU `index` has.
extern "C" void pretend_gpu(int index, int multiprocessors, int shared_bytes, int major, int ptx_version, int room) {
  gpus[index] = {multiprocessors, shared_bytes, major, ptx_version, room, 0};
}
extern "C" int times_asked(int index) { return gpus[index].asked; }
extern "C" int current_gpu() { return current; }
// Makes a GPU the current one, and forgets what was granted.
extern "C" void choose_gpu(int index) { cudaSetDevice(index); }
// How much shared memory and how many blocks of a cluster a kernel may have, and how often either was set since the
// last call.
extern "C" void granted(int* shared, int* blocks, int* times) {
  *shared = granted_shared, *blocks = granted_blocks, *times = attributes_set.exchange(0);
}
