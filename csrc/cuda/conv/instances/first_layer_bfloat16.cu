// Builds the kernels named like this file; see ../launch.cuh.

#include "cuda/conv/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_first_layer<true>(const FirstLayerParams& params, void* stream);
template const char* launch_first_layer_gradient<true>(const FirstLayerParams& params, void* stream);

}  // namespace fused_rnn::cuda
