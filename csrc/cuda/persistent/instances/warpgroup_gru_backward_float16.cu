// The persistent kernels with warpgroups of the GRU, backward, in float16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_warpgroup<cells::GRU, float16>(const PersistentBackwardParams<float16>& params,
                                                           void* stream);

}  // namespace fused_rnn::cuda
