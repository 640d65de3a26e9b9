// Runs a recurrent layer on a GPU.

#pragma once

#include "ops/layer.h"

namespace fused_rnn::ops {

RecurrentOutputs forward_on_cuda(const RecurrentLayer& layer, bool save_for_backward);

RecurrentInputGradients backward_on_cuda(const RecurrentLayer& layer, const RecurrentGradients& gradients,
                                         const RecurrentSaved& saved, Wanted wanted);

}  // namespace fused_rnn::ops
