// What stands in for a GPU and for torch's CUDA build under the glue of csrc/ops/: its facts, its stream, and those of
// its products that torch has not got on a CPU.

#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "cuda/device_info.h"
#include "ops/recurrent_cuda.h"

namespace fused_rnn::cuda {

Device device_at(int /*index*/) { return {132, 227 * 1024, 16}; }

}  // namespace fused_rnn::cuda

namespace fused_rnn::ops {
namespace {

// Lets the kernels take one path only, a cuda::Path.
void set_path(int64_t path) { cuda_wish().path = static_cast<cuda::Path>(path); }

// Products of half precision that are not rounded to it.
Tensor mm(const Tensor& a, const Tensor& b, at::ScalarType type) { return at::mm(a.to(type), b.to(type)); }
Tensor& mm_out(const Tensor& a, const Tensor& b, at::ScalarType type, Tensor& out) {
  return at::mm_out(out, a.to(type), b.to(type));
}

}  // namespace

void* current_stream(at::Device /*device*/) { return nullptr; }

_TORCH_LIBRARY_IMPL(aten, CPU, library, C10_UID) {
  library.impl("mm.dtype", mm);
  library.impl("mm.dtype_out", mm_out);
}

TORCH_LIBRARY(cuda_on_host, library) { library.def("set_path(int path) -> ()", set_path); }

}  // namespace fused_rnn::ops
