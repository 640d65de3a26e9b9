// The persistent kernels of the LSTM, backward, in float32.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<cells::LSTM, float>(const PersistentBackwardParams<float>& params, void* stream);

}  // namespace fused_rnn::cuda
