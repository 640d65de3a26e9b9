#include "ops/cuda/gated_activation.h"

#include <ATen/ops/empty.h>

#include "ops/dtype.h"

namespace fused_rnn::ops {

using at::Tensor;

namespace {

// Calls body(select_a, select_b, select_out) for each group of channels, with functions that select from images the
// channels of the group's first half, of its second half, and of its output.
template <typename Body>
void for_each_group(int64_t channels, int64_t groups, const Body& body) {
  const int64_t half = channels / 2 / groups;
  const auto part = [half](int64_t index) {
    return [=](const Tensor& images) { return images.narrow(1, index * half, half); };
  };
  for (int64_t group = 0; group < groups; ++group) body(part(2 * group), part(2 * group + 1), part(group));
}

}  // namespace

// Factors of half precision are computed in float32, so that only the result is rounded.
Tensor gated_activation_on_cuda(const Tensor& input, int64_t data_channels) {
  const Tensor output = at::empty({input.size(0), input.size(1) / 2, input.size(2), input.size(3)},
                                  input.options().memory_format(input.suggest_memory_format()));
  const auto type = accumulation_type(input.scalar_type());
  for_each_group(input.size(1), data_channels, [&](const auto& a, const auto& b, const auto& out) {
    out(output).copy_(a(input).to(type).tanh().mul_(b(input).to(type).sigmoid()));
  });
  return output;
}

Tensor gated_activation_backward_on_cuda(const Tensor& grad_output, const Tensor& input, int64_t data_channels) {
  const Tensor grad_input = at::empty(input.sizes(), input.options().memory_format(input.suggest_memory_format()));
  const auto type = accumulation_type(input.scalar_type());
  for_each_group(input.size(1), data_channels, [&](const auto& a, const auto& b, const auto& out) {
    const Tensor tanh = a(input).to(type).tanh(), sigmoid = b(input).to(type).sigmoid();
    const Tensor scaled = out(grad_output).to(type).mul(sigmoid);
    a(grad_input).copy_(scaled.mul(tanh.square().neg_().add_(1)));
    b(grad_input).copy_(scaled.mul(tanh).mul_(sigmoid.neg().add_(1)));
  });
  return grad_input;
}

}  // namespace fused_rnn::ops
