// The products of matrices on a GPU that the kernels leave to cuBLAS.

#pragma once

#include "ops/cuda/layer.h"

namespace fused_rnn::ops {

// Returns whether products of values of so many bytes may be rounded to tf32: those of float32, where
// torch.backends.cudnn allows it for recurrent networks.
bool allows_tf32(int64_t element_bytes);

// Writes the product of two matrices of the layer's type to `out`, which is of the layer's type or of state_type; or
// adds it to what is in `out`, which then is of the layer's type.
void multiply(const CudaLayer& cuda, Tensor out, const Tensor& a, const Tensor& b, bool add = false);

// Returns the product of two matrices of the layer's type in state_type, so not rounded to the layer's.
Tensor product(const CudaLayer& cuda, const Tensor& a, const Tensor& b);

}  // namespace fused_rnn::ops
