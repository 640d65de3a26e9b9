// Memory for large results on the CPU.

#pragma once

#include <ATen/core/Tensor.h>

namespace fused_rnn::ops {

// Returns `tensor`, which has just been allocated and not been written. If it is so large that its memory was mapped
// for it alone, Linux is asked for huge pages: the first write of each page costs as much as a large layer otherwise.
at::Tensor with_huge_pages(at::Tensor tensor);

}  // namespace fused_rnn::ops
