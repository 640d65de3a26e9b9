// The persistent kernels of the LSTM, backward, in float16.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<cells::LSTM, float16>(const PersistentBackwardParams<float16>& params,
                                                             void* stream);

}  // namespace fused_rnn::cuda
