// The persistent kernels with warpgroups of the GRU, forward, in float16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_warpgroup<cells::GRU, float16>(const PersistentForwardParams<float16>& params,
                                                           void* stream);

}  // namespace fused_rnn::cuda
