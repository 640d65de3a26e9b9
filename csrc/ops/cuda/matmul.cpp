#include "ops/cuda/matmul.h"

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <limits>

#include "ops/cuda/torch_cuda.h"

namespace fused_rnn::ops {
namespace {

// Returns the distance between the rows of a matrix each of whose rows is contiguous; 0 if they are not, or if rows
// overlap.
int64_t row_stride(const Tensor& matrix) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1), least = std::max<int64_t>(1, columns);
  if (columns > 1 && matrix.stride(1) != 1) return 0;
  if (rows <= 1) return least;
  return matrix.stride(0) >= least ? matrix.stride(0) : 0;
}

// A matrix as BLAS takes it. BLAS reads memory by columns, so that it sees the transpose of a matrix with contiguous
// rows.
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

// BLAS sees the transpose of every matrix, so it is asked for the transpose of the product: b^T a^T.
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

bool allows_tf32(int64_t element_bytes) {
  return element_bytes == sizeof(float) && at::globalContext().allowTF32CuDNN(at::Float32Op::RNN);
}

void multiply(const CudaLayer& cuda, Tensor out, const Tensor& a, const Tensor& b, bool add) {
  // ATen asks torch.backends.cuda.matmul whether it may use tf32, and can only be kept from it.
  if (cuda.allow_tf32 && finds_cublas()) return multiply_with_tf32(out, a, b, add);
  std::optional<at::NoTF32Guard> no_tf32;
  if (cuda.layer.type == at::kFloat && !cuda.allow_tf32) no_tf32.emplace();
  if (add)
    at::addmm_out(out, out, a, b);
  else
    out.scalar_type() == a.scalar_type() ? at::mm_out(out, a, b) : at::mm_out(out, a, b, out.scalar_type());
}

Tensor product(const CudaLayer& cuda, const Tensor& a, const Tensor& b) {
  const Tensor out = cuda.empty_state({a.size(0), b.size(1)});
  multiply(cuda, out, a, b);
  return out;
}

}  // namespace fused_rnn::ops
