// Builds the kernels named like this file; see ../launch.cuh.

#include "cuda/conv/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_correlation<true, true>(const CorrelationParams& params, void* stream);

}  // namespace fused_rnn::cuda
