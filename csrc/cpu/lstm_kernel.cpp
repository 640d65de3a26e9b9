// The kernels of the LSTM on the CPU.

#include "cpu/recurrent/instantiate.h"

FUSED_RNN_INSTANTIATE(LSTM)
