// The persistent kernels of the RNN, with tanh and with ReLU, backward, in bfloat16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<cells::RNNTanh, bfloat16>(const PersistentBackwardParams<bfloat16>& params,
                                                                 void* stream);
template const char* launch_persistent<cells::RNNReLU, bfloat16>(const PersistentBackwardParams<bfloat16>& params,
                                                                 void* stream);

}  // namespace fused_rnn::cuda
