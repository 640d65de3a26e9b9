// The usual call of a recurrent network at inference, without Python: a small layer takes less time than the Python
// code that distinguishes all other calls.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

namespace fused_rnn::ops {

// Runs all layers over padded sequences, or one step of a cell if `input` has two dimensions, as
// fused_rnn/functional/recurrent.py does, whose arguments these are; `states` is empty for zero. Returns the output and
// the final states.
//
// Returns nothing if the call is not plain: a gradient is needed, or a mode or transform is active that Python attends
// to, such as autocast, torch.func, tracing or forward mode; and if an argument does not fit, since the general way
// raises the exceptions of torch.nn.
std::optional<std::vector<at::Tensor>> plain_recurrent(std::string_view cell, const at::Tensor& input,
                                                       at::TensorList states, at::TensorList weights, int64_t layers,
                                                       int64_t directions, bool batch_first);

// The same with packed weights, see recurrent_frozen.cpp; `weights` are those that were packed, and `plain` also means
// that none of them needs a gradient.
std::optional<std::vector<at::Tensor>> plain_frozen(const at::Tensor& input, at::TensorList states,
                                                    at::TensorList weights, const at::Tensor& packed, bool batch_first);

}  // namespace fused_rnn::ops
