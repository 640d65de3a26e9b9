// Builds the kernels named like this file; see ../launch.cuh.

#include "cuda/conv/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_correlation<false, false>(const CorrelationParams& params, void* stream);

}  // namespace fused_rnn::cuda
