// The kernels of the plain RNN on the CPU.

#include "cpu/recurrent/instantiate.h"

FUSED_RNN_INSTANTIATE(RNNTanh)
FUSED_RNN_INSTANTIATE(RNNReLU)
