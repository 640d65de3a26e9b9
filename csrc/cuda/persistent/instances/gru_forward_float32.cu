// The persistent kernels of the GRU, forward, in float32.

#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<cells::GRU, float>(const PersistentForwardParams<float>& params, void* stream);

}  // namespace fused_rnn::cuda
