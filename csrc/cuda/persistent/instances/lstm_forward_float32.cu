// The persistent kernels of the LSTM, forward, in float32.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<cells::LSTM, float>(const PersistentForwardParams<float>& params, void* stream);

}  // namespace fused_rnn::cuda
