// Builds the kernels named like this file; see ../mma_launch.cuh.

#include "cuda/conv/mma_launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_mma_correlation<float, true>(const MmaCorrelationParams& params,
                                                         const MmaCorrelationPlan& plan, void* stream);

}  // namespace fused_rnn::cuda
