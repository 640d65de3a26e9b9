// The CUDA kernels of LSTM and GRU layers. Every function only launches, on `stream` of the current device: it waits
// for nothing, allocates nothing, and can be captured in a CUDA graph. It returns null, or an error as a static string.
// Pointers in params are to values of `element`; states that are not rounded to it are float32, float64 for kFloat64.

#pragma once

#include "cuda/persistent/plan.h"
#include "params/persistent.h"

namespace fused_rnn::cuda {

enum class Cell { kLSTM, kGRU };
enum class Element { kFloat32, kFloat64, kBFloat16, kFloat16 };

// All steps of a layer in one kernel, as params.plan shares it out; not for kFloat64.
const char* persistent(Cell cell, Element element, const PersistentForwardParams<void, void>& params, void* stream);
const char* persistent(Cell cell, Element element, const PersistentBackwardParams<void, void>& params, void* stream);

// One step of the stepwise path, beside the products.
const char* pointwise(Cell cell, Element element, const PointwiseForwardParams<void, void>& params, void* stream);
const char* pointwise(Cell cell, Element element, const PointwiseBackwardParams<void, void>& params, void* stream);

}  // namespace fused_rnn::cuda
