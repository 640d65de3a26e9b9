// The kernels of a recurrent layer, for every cell, once for each instruction set. Params say what is read and written.

#pragma once

#include "cpu/kit/per_capability.h"
#include "params/layer.h"

namespace fused_rnn::cpu {

// Cell is a struct of cells/, T is float or double; name_kernel.cpp instantiates both for the cell of that name.
FUSED_RNN_PER_CAPABILITY(
    // All steps of a layer.
    template <typename Cell, typename T> void recurrent_forward(const RecurrentForwardParams<T>& params);
    // All steps backwards, then the gradients of input and weights.
    template <typename Cell, typename T> void recurrent_backward(const RecurrentBackwardParams<T>& params);)

}  // namespace fused_rnn::cpu
