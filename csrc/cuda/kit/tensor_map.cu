// Descriptions of tensors for copies of boxes, which only the driver can make. It is asked for the function at run
// time, since the library must also load where there is no driver.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "cuda/kit/hopper.cuh"

namespace fused_rnn::cuda {
namespace {

constexpr int kMostDimensions = 5;
constexpr int kElementBytes = 2;
constexpr int64_t kMostSize = int64_t(1) << 32, kStrideLimit = int64_t(1) << 40;
constexpr int kMostInBox = 256;

using Encode = decltype(cuTensorMapEncodeTiled);

// The driver's function, or null.
Encode* find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  constexpr unsigned kSince = 12000;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kSince, cudaEnableDefault, &result) !=
          cudaSuccess ||
      result != cudaDriverEntryPointSuccess) {
    cudaGetLastError();  // so that the next call does not report it
    return nullptr;
  }
  return reinterpret_cast<Encode*>(found);
}

// Says which rule of the driver a tensor breaks; the driver itself does not.
const char* why_refused(const void* data, int rank, const int64_t* sizes, const int64_t* strides, const int* box) {
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return "the tensor's address is not a multiple of 16";
  const auto all = [](int count, const auto& holds) {
    for (int i = 0; i < count; ++i)
      if (!holds(i)) return false;
    return true;
  };
  if (!all(rank, [&](int i) { return sizes[i] >= 1 && sizes[i] <= kMostSize; }))
    return "a size of the tensor is not in 1 to 2^32";
  if (!all(rank - 1, [&](int i) { return strides[i] % 16 == 0; }))
    return "a stride of the tensor is not a multiple of 16 bytes";
  if (!all(rank - 1, [&](int i) { return strides[i] >= 0 && strides[i] < kStrideLimit; }))
    return "a stride of the tensor is not in 0 to 2^40 bytes";
  if (!all(rank, [&](int i) { return box[i] >= 1 && box[i] <= kMostInBox; }))
    return "a size of the box is not in 1 to 256";
  return "the driver refuses to describe the tensor";
}

}  // namespace

const char* make_tensor_map(TensorMap& map, const void* data, bool bfloat16, int rank, const int64_t* sizes,
                            const int64_t* strides, const int* box) {
  if (rank < 1 || rank > kMostDimensions) return "a tensor map has 1 to 5 dimensions";
  if (box[0] * kElementBytes != kRowBytes) return "a row of the box does not have 128 bytes";
  static Encode* const encode = find_encode();
  if (!encode) return "the driver cannot describe tensors for copies of boxes: it is older than CUDA 12.0";
  cuuint64_t the_sizes[kMostDimensions], the_strides[kMostDimensions];
  cuuint32_t the_box[kMostDimensions], steps[kMostDimensions];
  std::copy_n(sizes, rank, the_sizes);
  std::copy_n(strides, rank - 1, the_strides);
  std::copy_n(box, rank, the_box);
  std::fill_n(steps, rank, 1);
  const CUresult result =
      encode(&map.map, bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             static_cast<cuuint32_t>(rank), const_cast<void*>(data), the_sizes, the_strides, the_box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : why_refused(data, rank, sizes, strides, box);
}

}  // namespace fused_rnn::cuda
