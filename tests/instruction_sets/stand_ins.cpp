// Replacements for the functions of torch's libraries that the kernels call, so that the program needs no torch:
// exponential functions of doubles, and the function that reports a failed check.

#include <immintrin.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#define FUSED_RNN_SLEEF(name, Vector, width, instructions, load, store, function) \
  extern "C" __attribute__((target(instructions))) Vector name(Vector x) {        \
    alignas(64) double values[width];                                             \
    store(values, x);                                                             \
    for (double& value : values) value = function(value);                         \
    return load(values);                                                          \
  }

FUSED_RNN_SLEEF(Sleef_expd4_u10, __m256d, 4, "avx2", _mm256_load_pd, _mm256_store_pd, std::exp)
FUSED_RNN_SLEEF(Sleef_tanhd4_u10, __m256d, 4, "avx2", _mm256_load_pd, _mm256_store_pd, std::tanh)
FUSED_RNN_SLEEF(Sleef_expd8_u10, __m512d, 8, "avx512f", _mm512_load_pd, _mm512_store_pd, std::exp)
FUSED_RNN_SLEEF(Sleef_tanhd8_u10, __m512d, 8, "avx512f", _mm512_load_pd, _mm512_store_pd, std::tanh)

namespace c10::detail {
[[noreturn]] void torchCheckFail(const char*, const char* file, unsigned line, const char* message) {
  std::printf("%s:%u: %s\n", file, line, message);
  std::abort();
}
}  // namespace c10::detail
