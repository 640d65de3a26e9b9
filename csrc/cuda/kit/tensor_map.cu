// Asks the driver to describe a tensor to the units that copy its boxes.

#include <cuda_runtime_api.h>

#include <cstdio>

#include "cuda/kit/hopper.cuh"

namespace fused_rnn::cuda {
namespace {

// The driver's function, without linking to a driver, which a machine that builds need not have.
auto encode() {
  static const auto function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return function;
}

}  // namespace

const char* make_tensor_map(TensorMap& map, const void* data, bool bfloat16, int rank, const int64_t* sizes,
                            const int64_t* strides, const int* box) {
  constexpr int kMostRank = 5;
  if (!encode()) return "the CUDA driver has no cuTensorMapEncodeTiled";
  cuuint64_t dims[kMostRank], bytes[kMostRank];
  cuuint32_t boxes[kMostRank], ones[kMostRank];
  for (int i = 0; i < rank; ++i) {
    dims[i] = static_cast<cuuint64_t>(sizes[i]);
    if (i > 0) bytes[i - 1] = static_cast<cuuint64_t>(strides[i - 1]);
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    ones[i] = 1;
  }
  const CUresult result =
      encode()(&map.map, bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
               static_cast<cuuint32_t>(rank), const_cast<void*>(data), dims, bytes, boxes, ones,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return nullptr;
  static thread_local char text[96];
  std::snprintf(text, sizeof(text), "the driver cannot describe a tensor to the GPU (CUresult %d)", int(result));
  return text;
}

}  // namespace fused_rnn::cuda
