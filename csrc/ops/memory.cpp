#include "ops/memory.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_rnn::ops {

at::Tensor with_huge_pages(at::Tensor tensor) {
#if defined(__linux__)
  // From this size on, malloc of glibc maps memory in every call, and gives it back when the tensor is freed. Smaller
  // tensors get memory that was written before.
  constexpr size_t kMappedAlone = 32 << 20;
  constexpr uintptr_t kPage = 4096;
  if (tensor.nbytes() >= kMappedAlone) {
    const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()), end = begin + tensor.nbytes();
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
    // Where there are no huge pages, the advice fails and nothing changes.
    (void)madvise(reinterpret_cast<void*>(first), end / kPage * kPage - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

}  // namespace fused_rnn::ops
