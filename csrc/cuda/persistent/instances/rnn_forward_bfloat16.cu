// The persistent kernels of the RNN, with tanh and with ReLU, forward, in bfloat16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<cells::RNNTanh, bfloat16>(const PersistentForwardParams<bfloat16>& params,
                                                                 void* stream);
template const char* launch_persistent<cells::RNNReLU, bfloat16>(const PersistentForwardParams<bfloat16>& params,
                                                                 void* stream);

}  // namespace fused_rnn::cuda
