// Nothing here links with a library of CUDA, so that this links with every torch: the stream comes through c10/core,
// and cuBLAS is looked up in the library of torch's CUDA build where that is loaded.

#include "ops/cuda/torch_cuda.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

namespace fused_rnn::ops {
namespace {

// Values of the enumerations in cublas_api.h and library_types.h, which the toolkit need not have.
enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_GEMM_DEFAULT = -1 };
enum { CUDA_R_32F = 0, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };

struct Cublas {
  // torch_get_current_cuda_blas_handle of torch/csrc/stable/c/shim.h, which is the same from torch 2.10 on. It sets the
  // handle's stream and workspace as ATen does.
  int32_t (*handle)(void** handle);
  int (*gemm)(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
              int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
              int compute_type, int algorithm);
};

// Returns the functions, null without CUDA. They are looked up in the library of torch's CUDA build and in those that
// it needs, such as cuBLAS. Weak symbols would not find them: the linker drops that library from what this one needs,
// since this one uses nothing else of it.
const Cublas& cublas() {
  static const Cublas found = [] {
    Cublas functions = {};
    if (void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) {
      functions.handle =
          reinterpret_cast<decltype(functions.handle)>(dlsym(library, "torch_get_current_cuda_blas_handle"));
      functions.gemm = reinterpret_cast<decltype(functions.gemm)>(dlsym(library, "cublasGemmEx"));
    }
    return functions;
  }();
  return found;
}

}  // namespace

void* current_stream(c10::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return reinterpret_cast<void*>(guard.getStream(device).native_handle());
}

bool finds_cublas() { return cublas().handle != nullptr && cublas().gemm != nullptr; }

void gemm_tf32(const Gemm& gemm) {
  void* handle = nullptr;
  TORCH_CHECK(cublas().handle(&handle) == 0, "PyTorch has no cuBLAS handle for the current device");
  const float alpha = 1;
  const auto operation = [](bool transpose) -> int { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const int status =
      cublas().gemm(handle, operation(gemm.transpose_a), operation(gemm.transpose_b), gemm.m, gemm.n, gemm.k, &alpha,
                    gemm.a, CUDA_R_32F, gemm.lda, gemm.b, CUDA_R_32F, gemm.ldb, &gemm.beta, gemm.c, CUDA_R_32F,
                    gemm.ldc, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT);
  TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "cublasGemmEx failed with status ", status);
}

}  // namespace fused_rnn::ops
