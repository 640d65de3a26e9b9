// Instantiates the kernels of a cell. Each <name>_kernel.cpp does so for one cell, so that they compile in parallel.

#pragma once

#include "cpu/recurrent.h"
#include "cpu/recurrent/backward.h"
#include "cpu/recurrent/forward.h"

#define FUSED_RNN_INSTANTIATE(Cell)                                                                           \
  namespace fused_rnn::cpu::CPU_CAPABILITY {                                                                  \
  template void recurrent_forward<cells::Cell>(const RecurrentForwardParams<float>& params);                  \
  template void recurrent_forward<cells::Cell>(const RecurrentForwardParams<double>& params);                 \
  template void recurrent_forward<cells::Cell>(const RecurrentForwardParams<float, c10::BFloat16>& params);   \
  template void recurrent_backward<cells::Cell>(const RecurrentBackwardParams<float>& params);                \
  template void recurrent_backward<cells::Cell>(const RecurrentBackwardParams<double>& params);               \
  template void recurrent_backward<cells::Cell>(const RecurrentBackwardParams<float, c10::BFloat16>& params); \
  }
