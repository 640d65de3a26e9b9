// The persistent kernels of the GRU, backward, in float32.

#include "cuda/gru.cuh"
#include "cuda/persistent/launch.cuh"

namespace fused_rnn::cuda {

template const char* launch_persistent<GRUCell, float>(const PersistentBackwardParams<float, float>& params,
                                                       void* stream);

}  // namespace fused_rnn::cuda
