// Division that rounds up, for the host and for kernels.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FUSED_RNN_HOST_DEVICE __host__ __device__
#else
#define FUSED_RNN_HOST_DEVICE
#endif

namespace fused_rnn::cuda {

FUSED_RNN_HOST_DEVICE constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
FUSED_RNN_HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

}  // namespace fused_rnn::cuda
