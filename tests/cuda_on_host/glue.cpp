// What stands in for a GPU and for torch's CUDA build under the operators of csrc/ops/: tensors on the CPU take the way
// of those on a GPU, and this has the GPU's facts, its stream, and those of its products that torch lacks on a CPU.

#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda/kit/device_info.h"
#include "cuda/kit/launch.h"
#include "fibers.h"
#include "ops/cuda/gated_activation.h"
#include "ops/cuda/masked_conv2d.h"
#include "ops/cuda/persistent.h"
#include "ops/cuda/pixel_network.h"
#include "ops/cuda/recurrent.h"
#include "ops/cuda/torch_cuda.h"
#include "ops/masked_conv2d_cpu.h"
#include "ops/recurrent_cpu.h"

namespace fused_rnn::cuda {

namespace {
bool capturing = false, hopper = true;
}

// Those of a Hopper, which may be without the kernels for it.
Device device_at(int /*index*/) {
  Device device = {132, 227 * 1024, {}, 0, hopper};
  for (int blocks = 1; blocks <= kMostClusterBlocks; ++blocks) device.clusters[blocks] = 132 / blocks;
  return device;
}

bool is_capturing(void* /*stream*/) { return capturing; }

}  // namespace fused_rnn::cuda

namespace fused_rnn::ops {

RecurrentOutputs forward_on_cpu(const RecurrentLayer& layer, bool save_for_backward) {
  return forward_on_cuda(layer, save_for_backward);
}

RecurrentInputGradients backward_on_cpu(const RecurrentLayer& layer, const RecurrentGradients& gradients,
                                        const RecurrentSaved& saved, Wanted wanted) {
  return backward_on_cuda(layer, gradients, saved, wanted);
}

Tensor masked_conv2d_on_cpu(const MaskedConv2d& layer, const Tensor& bias) {
  return masked_conv2d_on_cuda(layer, bias);
}

MaskedConv2dResults masked_conv2d_fused_on_cpu(const MaskedConv2d& layer, const Tensor& bias,
                                               const MaskedConv2dEpilogue& epilogue) {
  return masked_conv2d_fused_on_cuda(layer, bias, epilogue);
}

MaskedConv2dGradients masked_conv2d_backward_on_cpu(const MaskedConv2d& layer, const Tensor& grad_output,
                                                    MaskedConv2dWanted wanted) {
  return masked_conv2d_backward_on_cuda(layer, grad_output, wanted);
}

template <typename T>
PixelNetworkDevice<T> pixel_network_on_cpu() {
  return pixel_network_on_cuda<T>();
}
template PixelNetworkDevice<float> pixel_network_on_cpu();
template PixelNetworkDevice<double> pixel_network_on_cpu();

namespace {

// Lets the kernels take one path only, a cuda::Path.
void set_path(int64_t path) { current_plan_override().path = static_cast<cuda::Path>(path); }

// Products of half precision that are not rounded to it.
Tensor mm(const Tensor& a, const Tensor& b, at::ScalarType type) { return at::mm(a.to(type), b.to(type)); }
Tensor& mm_out(const Tensor& a, const Tensor& b, at::ScalarType type, Tensor& out) {
  return at::mm_out(out, a.to(type), b.to(type));
}

// How many products were computed with tf32 so far.
int64_t tf32_products = 0;

Tensor by_columns(const float* values, int64_t rows, int64_t columns, int64_t stride) {
  TORCH_CHECK(stride >= std::max<int64_t>(1, rows), "cuBLAS refuses a stride of ", stride, " for ", rows, " rows");
  return at::from_blob(const_cast<float*>(values), {rows, columns}, {1, stride}, at::kFloat);
}

// The matrix [rows, columns], given transposed or not, rounded as in tf32.py; in float64, for an exact product.
Tensor rounded(const float* values, int64_t rows, int64_t columns, int64_t stride, bool transposed) {
  const Tensor matrix =
      transposed ? by_columns(values, columns, rows, stride).t() : by_columns(values, rows, columns, stride);
  const Tensor bits = matrix.contiguous().view(at::kInt).add(0x1000).bitwise_and(~0x1fff);
  return at::where(matrix.isfinite(), bits.view(at::kFloat), matrix).to(at::kDouble);
}

}  // namespace

bool finds_cublas() { return true; }

void gemm_tf32(const Gemm& gemm) {
  ++tf32_products;
  const Tensor product = at::mm(rounded(gemm.a, gemm.m, gemm.k, gemm.lda, gemm.transpose_a),
                                rounded(gemm.b, gemm.k, gemm.n, gemm.ldb, gemm.transpose_b));
  const Tensor c = by_columns(gemm.c, gemm.m, gemm.n, gemm.ldc);
  gemm.beta == 0 ? c.copy_(product) : c.mul_(gemm.beta).add_(product);
}

void* current_stream(c10::Device /*device*/) { return nullptr; }

_TORCH_LIBRARY_IMPL(aten, CPU, library, C10_UID) {
  library.impl("mm.dtype", mm);
  library.impl("mm.dtype_out", mm_out);
}

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("gated_activation", gated_activation_on_cuda);
  library.impl("gated_activation_backward", gated_activation_backward_on_cuda);
}

TORCH_LIBRARY(cuda_on_host, library) {
  library.def("set_path(int path) -> ()", set_path);
  library.def("tf32_products() -> int", [] { return tf32_products; });
  library.def("set_room(int blocks) -> ()", cuda::host::set_room);
  library.def("most_blocks_launched() -> int", cuda::host::most_blocks_launched);
  library.def("set_capturing(bool capturing) -> ()", [](bool value) { cuda::capturing = value; });
  library.def("set_hopper(bool hopper) -> ()", [](bool value) { cuda::hopper = value; });
  library.def("set_multiprocessor_limit(int limit) -> ()",
              [](int64_t limit) { set_multiprocessor_limit(static_cast<int>(limit)); });
}

}  // namespace fused_rnn::ops
