// The persistent kernels with warpgroups of the GRU, backward, in bfloat16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_warpgroup<cells::GRU, bfloat16>(const PersistentBackwardParams<bfloat16>& params,
                                                            void* stream);

}  // namespace fused_rnn::cuda
