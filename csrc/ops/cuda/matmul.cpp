// The products of a layer on a GPU, all of them: what the kernels leave to cuBLAS.

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <limits>

#include "ops/cuda/layer.h"

namespace fused_rnn::ops {
namespace {

// How far apart the rows of a matrix lie whose columns are neighbours; 0 if they are not, or rows overlap.
int64_t row_stride(const Tensor& matrix) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1), least = std::max<int64_t>(1, columns);
  if (columns > 1 && matrix.stride(1) != 1) return 0;
  if (rows <= 1) return least;
  return matrix.stride(0) >= least ? matrix.stride(0) : 0;
}

// A matrix as BLAS reads it, by columns: transposed, unless it lies by columns itself.
struct Operand {
  Tensor values;
  bool by_columns;
  int64_t stride;

  explicit Operand(const Tensor& matrix) : values(matrix), by_columns(false), stride(row_stride(matrix)) {
    if (stride > 0) return;
    stride = row_stride(matrix.t());
    by_columns = stride > 0;
    if (by_columns) return;
    values = matrix.contiguous();
    stride = row_stride(values);
  }
};

int as_int(int64_t size) {
  TORCH_CHECK(size <= std::numeric_limits<int>::max(), "a product with tf32 is too large for cuBLAS: ", size);
  return static_cast<int>(size);
}

// BLAS sees the transposed matrices, and computes the transposed product.
void multiply_with_tf32(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  if (out.numel() == 0) return;
  if (a.size(1) == 0) {
    if (!add) out.zero_();
    return;
  }
  const Operand left(b), right(a);
  const int64_t stride = row_stride(out);
  TORCH_INTERNAL_ASSERT(stride > 0);
  Gemm gemm = {};
  gemm.transpose_a = left.by_columns;
  gemm.transpose_b = right.by_columns;
  gemm.m = as_int(b.size(1));
  gemm.n = as_int(a.size(0));
  gemm.k = as_int(a.size(1));
  gemm.a = left.values.const_data_ptr<float>();
  gemm.lda = as_int(left.stride);
  gemm.b = right.values.const_data_ptr<float>();
  gemm.ldb = as_int(right.stride);
  gemm.beta = add ? 1 : 0;
  gemm.c = out.mutable_data_ptr<float>();
  gemm.ldc = as_int(stride);
  gemm_tf32(gemm);
}

}  // namespace

void CudaLayer::multiply(Tensor out, const Tensor& a, const Tensor& b, bool add) const {
  // ATen asks torch.backends.cuda.matmul whether it may use tf32, and can only be kept from it.
  if (allow_tf32 && finds_cublas()) return multiply_with_tf32(out, a, b, add);
  std::optional<at::NoTF32Guard> no_tf32;
  if (layer.type == at::kFloat && !allow_tf32) no_tf32.emplace();
  if (add)
    at::addmm_out(out, out, a, b);
  else
    out.scalar_type() == a.scalar_type() ? at::mm_out(out, a, b) : at::mm_out(out, a, b, out.scalar_type());
}

Tensor CudaLayer::product(const Tensor& a, const Tensor& b) const {
  const Tensor out = empty_state({a.size(0), b.size(1)});
  multiply(out, a, b);
  return out;
}

}  // namespace fused_rnn::ops
