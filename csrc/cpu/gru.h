// The kernels of a GRU layer, once for each instruction set. Params say what is read and written.

#pragma once

#include "cpu/kit/per_capability.h"
#include "params/layer.h"

namespace fused_rnn::cpu {

FUSED_RNN_PER_CAPABILITY(
    // All steps of a layer.
    void gru(const RecurrentForwardParams<float>& params); void gru(const RecurrentForwardParams<double>& params);
    // All steps backwards, then the gradients of input and weights.
    void gru_backward(const RecurrentBackwardParams<float>& params);
    void gru_backward(const RecurrentBackwardParams<double>& params);)

}  // namespace fused_rnn::cpu
