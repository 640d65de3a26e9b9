// The persistent kernels of the LSTM, backward, in float32.

#include "cuda/lstm.cuh"
#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<LSTMCell, float>(const PersistentBackwardParams<float, float>& params,
                                                        void* stream);

}  // namespace fused_rnn::cuda
