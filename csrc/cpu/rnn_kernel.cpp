// The plain RNN on a processor.

#include "cpu/recurrent/instantiate.h"

FUSED_RNN_INSTANTIATE(RNNTanh)
FUSED_RNN_INSTANTIATE(RNNReLU)
