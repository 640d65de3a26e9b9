// The CUDA kernels of recurrent layers. Every function only launches, on `stream` of the current device: it waits for
// nothing, allocates nothing, and can be captured in a CUDA graph. It returns null, or what is wrong as a static
// string. Pointers in params are to values of `element`; those to Accumulator are to float, for kFloat64 to double.

#pragma once

#include "cells/cells.h"
#include "cuda/kit/launch.h"
#include "cuda/persistent/plan.h"
#include "params/persistent.h"
#include "params/stepwise.h"

namespace fused_rnn::cuda {

enum class Element { kFloat32, kFloat64, kBFloat16, kFloat16 };

// All steps of a layer in one kernel, shared out as params.plan says; there is none for kFloat64. If they return
// kDoesNotFit, nothing was launched that writes more than `output` or `grad_gates`.
const char* persistent(cells::Kind cell, Element element, const PersistentForwardParams<void>& params, void* stream);
const char* persistent(cells::Kind cell, Element element, const PersistentBackwardParams<void>& params, void* stream);

// One step of the stepwise path, between the products.
const char* pointwise(cells::Kind cell, Element element, const PointwiseForwardParams<void, void>& params,
                      void* stream);
const char* pointwise(cells::Kind cell, Element element, const PointwiseBackwardParams<void, void>& params,
                      void* stream);

}  // namespace fused_rnn::cuda
