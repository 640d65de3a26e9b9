// The forward and backward pass of a recurrent layer on the CPU.

#pragma once

#include "ops/layer.h"

namespace fused_rnn::ops {

RecurrentOutputs forward_on_cpu(const RecurrentLayer& layer, bool save_for_backward);

RecurrentInputGradients backward_on_cpu(const RecurrentLayer& layer, const RecurrentGradients& gradients,
                                        const RecurrentSaved& saved, Wanted wanted);

}  // namespace fused_rnn::ops
