// The kernels of an LSTM layer, once for each instruction set. Params say what is read and written.

#pragma once

#include "cpu/kit/per_capability.h"
#include "params/layer.h"

namespace fused_rnn::cpu {

FUSED_RNN_PER_CAPABILITY(
    // All steps of a layer.
    void lstm(const RecurrentForward<float>& params); void lstm(const RecurrentForward<double>& params);
    // All steps backwards, then the gradients of input and weights.
    void lstm_backward(const RecurrentBackward<float>& params);
    void lstm_backward(const RecurrentBackward<double>& params);)

}  // namespace fused_rnn::cpu
