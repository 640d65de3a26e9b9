// The GRU on a processor.

#include "cpu/recurrent/instantiate.h"

FUSED_RNN_INSTANTIATE(GRU)
