// The LSTM on a processor.

#include "cpu/recurrent/instantiate.h"

FUSED_RNN_INSTANTIATE(LSTM)
