// The persistent kernels with warpgroups of the LSTM, forward, in float16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_warpgroup<cells::LSTM, float16>(const PersistentForwardParams<float16>& params,
                                                            void* stream);

}  // namespace fused_rnn::cuda
