// The forward and backward pass of a recurrent layer on the CPU.

#pragma once

#include "ops/dispatch.h"
#include "ops/dtype.h"
#include "ops/layer.h"

namespace fused_rnn::ops {

// Returns the dtype of the gates that are saved for backward, and of the other arrays that params/layer.h calls Stored,
// in a layer of dtype `type`.
inline at::ScalarType saved_on_cpu(at::ScalarType type) {
  return type == at::kBFloat16 && multiplies_pairs() ? type : accumulation_type(type);
}

RecurrentOutputs forward_on_cpu(const RecurrentLayer& layer, bool save_for_backward);

// Computes a frozen layer, whose outputs have no gates, and a history only if it is wanted.
RecurrentOutputs forward_frozen(const RecurrentLayer& layer, bool history);

// Returns the instruction set for which the weights of a frozen layer are packed.
Capability capability_of(FrozenForm form);

// Packs the weights of a layer, whose sizes are known but for the steps, in the form of layer.frozen. If that has no
// memory yet, only chooses its other members. Returns how many bytes the packed weights take.
int64_t freeze_on_cpu(RecurrentLayer& layer);

RecurrentInputGradients backward_on_cpu(const RecurrentLayer& layer, const RecurrentGradients& gradients,
                                        const RecurrentSaved& saved, Wanted wanted);

}  // namespace fused_rnn::ops
