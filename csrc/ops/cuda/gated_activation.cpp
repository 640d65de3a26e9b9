#include "ops/cuda/gated_activation.h"

#include <ATen/ops/empty.h>

#include "ops/dtype.h"

namespace fused_rnn::ops {

using at::Tensor;

Tensor gated_activation_on_cuda(const Tensor& input, int64_t data_channels) {
  const int64_t batch = input.size(0), channels = input.size(1) / 2, half = channels / data_channels;
  const Tensor output = at::empty({batch, channels, input.size(2), input.size(3)},
                                  input.options().memory_format(input.suggest_memory_format()));
  // The factors are not rounded to half precision, only their product is.
  const auto type = accumulation_type(input.scalar_type());
  for (int64_t group = 0; group < data_channels; ++group) {
    const Tensor a = input.narrow(1, 2 * group * half, half), b = input.narrow(1, (2 * group + 1) * half, half);
    output.narrow(1, group * half, half).copy_(a.to(type).tanh().mul_(b.to(type).sigmoid()));
  }
  return output;
}

}  // namespace fused_rnn::ops
