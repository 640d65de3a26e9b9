// The persistent kernels with warpgroups of the RNN, with tanh and with ReLU, forward, in bfloat16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_warpgroup<cells::RNNTanh, bfloat16>(const PersistentForwardParams<bfloat16>& params,
                                                                void* stream);
template const char* launch_warpgroup<cells::RNNReLU, bfloat16>(const PersistentForwardParams<bfloat16>& params,
                                                                void* stream);

}  // namespace fused_rnn::cuda
