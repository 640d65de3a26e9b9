// Builds the kernels named like this file; see ../launch.cuh.

#include "cuda/conv/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_weight_gradient<false, 1>(const WeightGradientParams& params, void* stream);
template const char* launch_weight_gradient<false, 2>(const WeightGradientParams& params, void* stream);

}  // namespace fused_rnn::cuda
