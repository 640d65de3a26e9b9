// The persistent kernels of the RNN, with tanh and with ReLU, backward, in float32.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<cells::RNNTanh, float>(const PersistentBackwardParams<float>& params,
                                                              void* stream);
template const char* launch_persistent<cells::RNNReLU, float>(const PersistentBackwardParams<float>& params,
                                                              void* stream);

}  // namespace fused_rnn::cuda
