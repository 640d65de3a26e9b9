// The kernels of a recurrent layer on the CPU, for every cell and instruction set. params/layer.h says which arrays
// they read and write.

#pragma once

#include "cpu/kit/per_capability.h"
#include "params/layer.h"

namespace fused_rnn::cpu {

// Cell is a struct of cells/, T is float or double. <name>_kernel.cpp instantiates both templates for its cell.
FUSED_RNN_PER_CAPABILITY(
    // Computes all steps of a layer.
    template <typename Cell, typename T> void recurrent_forward(const RecurrentForwardParams<T>& params);
    // Computes all steps backwards, and then the gradients of the input and the weights.
    template <typename Cell, typename T> void recurrent_backward(const RecurrentBackwardParams<T>& params);)

}  // namespace fused_rnn::cpu
