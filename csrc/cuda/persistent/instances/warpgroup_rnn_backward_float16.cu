// The persistent kernels with warpgroups of the RNN, with tanh and with ReLU, backward, in float16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_warpgroup<cells::RNNTanh, float16>(const PersistentBackwardParams<float16>& params,
                                                               void* stream);
template const char* launch_warpgroup<cells::RNNReLU, float16>(const PersistentBackwardParams<float16>& params,
                                                               void* stream);

}  // namespace fused_rnn::cuda
