// The persistent kernels of the LSTM, forward, in bfloat16.

#include "cuda/lstm.cuh"
#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<LSTMCell, bfloat16>(const PersistentForwardParams<bfloat16, float>& params,
                                                           void* stream);

}  // namespace fused_rnn::cuda
