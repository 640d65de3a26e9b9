// Stands in for the CUDA driver, as far as csrc/cuda/kit/tensor_map.cu asks it: it describes tensors for copies of
// boxes, and refuses what a driver refuses.

// Hidden, for the linker to take these and not those of a CUDA build of torch.
#pragma GCC visibility push(hidden)

#include <cuda_runtime_api.h>

#include <cstring>

#include "encoded_map.h"

namespace fused_rnn::cuda::host {
namespace {

CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps,
                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion /*promotion*/,
                CUtensorMapFloatOOBfill fill) {
  const auto is_aligned = [](const void* address, uintptr_t to) {
    return reinterpret_cast<uintptr_t>(address) % to == 0;
  };
  // The driver can do more, but the copies of boxes in this folder cannot.
  if ((type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 && type != CU_TENSOR_MAP_DATA_TYPE_FLOAT16) ||
      interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle != CU_TENSOR_MAP_SWIZZLE_128B ||
      fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || box[0] != 64)
    return CUDA_ERROR_NOT_SUPPORTED;
  if (!is_aligned(map, 64) || !is_aligned(data, 16) || rank < 1 || rank > EncodedMap::kMostDimensions)
    return CUDA_ERROR_INVALID_VALUE;
  EncodedMap encoded = {};
  encoded.made = EncodedMap::kMade, encoded.data = static_cast<char*>(data), encoded.rank = static_cast<uint8_t>(rank);
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (sizes[i] < 1 || sizes[i] > cuuint64_t(1) << 32 || box[i] < 1 || box[i] > 256 || steps[i] != 1)
      return CUDA_ERROR_INVALID_VALUE;
    encoded.sizes[i] = static_cast<int64_t>(sizes[i]);
    encoded.box[i] = static_cast<uint16_t>(box[i]);
  }
  for (cuuint32_t i = 0; i + 1 < rank; ++i) {
    if (strides[i] % 16 != 0 || strides[i] >= cuuint64_t(1) << 40) return CUDA_ERROR_INVALID_VALUE;
    encoded.strides[i] = static_cast<int64_t>(strides[i]);
  }
  std::memset(map, 0, sizeof(*map));
  std::memcpy(map, &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}

}  // namespace
}  // namespace fused_rnn::cuda::host

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long /*flags*/, cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0 && version >= 12000;
  *function = known ? reinterpret_cast<void*>(fused_rnn::cuda::host::encode) : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
