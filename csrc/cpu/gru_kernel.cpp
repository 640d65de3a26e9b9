// The kernels of the GRU on the CPU.

#include "cpu/recurrent/instantiate.h"

FUSED_RNN_INSTANTIATE(GRU)
