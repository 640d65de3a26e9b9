// The kernels of a recurrent layer on the CPU, for every cell and instruction set. params/layer.h says which arrays
// they read and write.

#pragma once

#include "cpu/kit/per_capability.h"
#include "params/layer.h"

namespace fused_rnn::cpu {

// Cell is a struct of cells/, and T is float or double. Stored is T, or c10::BFloat16 to multiply in pairs of bfloat16,
// with a T of float. <name>_kernel.cpp instantiates the first two templates for its cell, and frozen_kernel.cpp the
// others for all cells.
FUSED_RNN_PER_CAPABILITY(
    // Computes all steps of a layer.
    template <typename Cell, typename T, typename Stored>
    void recurrent_forward(const RecurrentForwardParams<T, Stored>& params);
    // Computes all steps backwards, and then the gradients of the input and the weights.
    template <typename Cell, typename T, typename Stored>
    void recurrent_backward(const RecurrentBackwardParams<T, Stored>& params);
    // Packs the weights of a layer in the form of params.frozen, and returns how many values of T that takes. If the
    // memory of params.frozen is null, only chooses its block_units and returns the size.
    template <typename Cell, typename T> int64_t recurrent_freeze(RecurrentForwardParams<T>& params);
    // Computes all steps of a layer whose weights were packed so.
    template <typename Cell, typename T> void recurrent_frozen(const RecurrentForwardParams<T>& params);)

}  // namespace fused_rnn::cpu
