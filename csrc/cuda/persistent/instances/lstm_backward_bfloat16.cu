// The persistent kernels of the LSTM, backward, in bfloat16.

#include "cuda/lstm.cuh"
#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<LSTMCell, bfloat16>(const PersistentBackwardParams<bfloat16, float>& params,
                                                           void* stream);

}  // namespace fused_rnn::cuda
