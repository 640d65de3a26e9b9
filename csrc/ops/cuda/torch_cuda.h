// What a layer asks of torch's CUDA build. tests/cuda_on_host/glue.cpp has twins of these functions for the CPU.

#pragma once

#include <c10/core/Device.h>

namespace fused_rnn::ops {

// Returns torch's current stream of a GPU, on which kernels are to be launched.
void* current_stream(c10::Device device);

// A product of float32 matrices whose columns are contiguous, as BLAS has it: c [m, n] = a [m, k] b [k, n] + beta c,
// where a and b may be given transposed.
struct Gemm {
  bool transpose_a, transpose_b;
  int m, n, k;
  const float* a;
  int lda;
  const float* b;
  int ldb;
  float beta;
  float* c;
  int ldc;
};

// Returns whether torch brings cuBLAS, as its CUDA builds do.
bool finds_cublas();

// Computes the product with cuBLAS on the current stream, its factors rounded to tf32.
void gemm_tf32(const Gemm& gemm);

}  // namespace fused_rnn::ops
