// The dtypes of the operators.

#pragma once

#include <ATen/core/Tensor.h>

namespace fused_rnn::ops {

// Checks that an operator has kernels for the dtype of its input.
inline void check_dtype(const at::Tensor& input) {
  const auto type = input.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
                              "input must be float32, float64, bfloat16 or float16, got ", type);
}

// Returns the type in which sums are computed, which is float32 for the half precisions.
inline at::ScalarType accumulation_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

}  // namespace fused_rnn::ops
