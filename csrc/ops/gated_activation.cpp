// The operator gated_activation: it checks its arguments, and on the CPU allocates the result and calls the kernel.

#include "cpu/gated_activation.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "ops/dispatch.h"
#include "ops/dtype.h"

#ifdef FUSED_RNN_CUDA
#include "ops/cuda/gated_activation.h"
#endif

namespace fused_rnn::ops {
namespace {

using at::Tensor;

Tensor gated_activation_on_cpu(const Tensor& input, int64_t data_channels) {
  const auto type = input.scalar_type();
  const auto format = input.suggest_memory_format();
  const Tensor dense = input.to(accumulation_type(type)).contiguous(format);
  const int64_t channels = input.size(1) / 2;
  const Tensor output =
      at::empty({input.size(0), channels, input.size(2), input.size(3)}, dense.options().memory_format(format));
  // The numbers of half a group are contiguous at one pixel with channels last, and at all pixels otherwise.
  const int64_t half = channels / data_channels, pixels = input.size(2) * input.size(3);
  const int64_t count = format == at::MemoryFormat::ChannelsLast ? half : half * pixels;
  const int64_t blocks = count == 0 ? 0 : output.numel() / count;
  const int64_t threads = at::get_num_threads();
  if (dense.scalar_type() == at::kDouble)
    FUSED_RNN_CPU_CALL(gated_activation, dense.const_data_ptr<double>(), output.mutable_data_ptr<double>(), blocks,
                       count, threads);
  else
    FUSED_RNN_CPU_CALL(gated_activation, dense.const_data_ptr<float>(), output.mutable_data_ptr<float>(), blocks, count,
                       threads);
  return output.to(type);
}

Tensor gated_activation(const Tensor& input, int64_t data_channels) {
  check_dtype(input);
  TORCH_CHECK_VALUE(input.dim() == 4, "input must have 4 dimensions, [batch, channels, height, width], got ",
                    input.dim());
  TORCH_CHECK_VALUE(data_channels >= 1 && input.size(1) % (2 * data_channels) == 0,
                    "the channels of input must be a multiple of 2 * data_channels, got ", input.size(1),
                    " channels and data_channels=", data_channels);
#ifdef FUSED_RNN_CUDA
  if (input.is_cuda()) return gated_activation_on_cuda(input, data_channels);
#endif
  return gated_activation_on_cpu(input, data_channels);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) { library.impl("gated_activation", gated_activation); }

#ifdef FUSED_RNN_CUDA
TORCH_LIBRARY_IMPL(fused_rnn, CUDA, library) { library.impl("gated_activation", gated_activation); }
#endif

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("gated_activation", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn::ops
