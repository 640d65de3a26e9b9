// The operators gated_activation and gated_activation_backward: they check their arguments, and on the CPU allocate the
// result and call the kernel.

#include "cpu/gated_activation.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <array>

#include "ops/dispatch.h"
#include "ops/dtype.h"
#include "ops/threads.h"

#ifdef FUSED_RNN_CUDA
#include "ops/cuda/gated_activation.h"
#endif

namespace fused_rnn::ops {
namespace {

using at::Tensor;

void check_input(const Tensor& input, int64_t data_channels) {
  check_dtype(input);
  TORCH_CHECK_VALUE(input.dim() == 4, "input must have 4 dimensions, [batch, channels, height, width], got ",
                    input.dim());
  TORCH_CHECK_VALUE(data_channels >= 1 && input.size(1) % (2 * data_channels) == 0,
                    "the channels of input must be a multiple of 2 * data_channels, got ", input.size(1),
                    " channels and data_channels=", data_channels);
}

std::array<int64_t, 4> output_shape(const Tensor& input) {
  return {input.size(0), input.size(1) / 2, input.size(2), input.size(3)};
}

// The input's memory format and type as a kernel needs them, and how its numbers are grouped there: those of half a
// group are contiguous at one pixel with channels last, and at all pixels otherwise.
struct Layout {
  at::MemoryFormat format;
  at::ScalarType type;
  int64_t count, blocks;  // how many contiguous numbers belong to one half, and how many such blocks the output has

  Layout(const Tensor& input, int64_t data_channels)
      : format(input.suggest_memory_format()), type(accumulation_type(input.scalar_type())) {
    const int64_t half = input.size(1) / 2 / data_channels, pixels = input.size(2) * input.size(3);
    count = format == at::MemoryFormat::ChannelsLast ? half : half * pixels;
    blocks = count == 0 ? 0 : input.numel() / 2 / count;
  }
  Tensor dense(const Tensor& tensor) const { return tensor.to(type).contiguous(format); }
  Tensor empty(at::IntArrayRef shape, const Tensor& like) const {
    return at::empty(shape, like.options().dtype(type).memory_format(format));
  }
};

Tensor gated_activation_on_cpu(const Tensor& input, int64_t data_channels) {
  const Layout layout(input, data_channels);
  const Tensor dense = layout.dense(input);
  const Tensor output = layout.empty(output_shape(input), input);
  const int64_t threads = most_threads();
  if (layout.type == at::kDouble)
    FUSED_RNN_CPU_CALL(gated_activation, dense.const_data_ptr<double>(), output.mutable_data_ptr<double>(),
                       layout.blocks, layout.count, threads);
  else
    FUSED_RNN_CPU_CALL(gated_activation, dense.const_data_ptr<float>(), output.mutable_data_ptr<float>(), layout.blocks,
                       layout.count, threads);
  return output.to(input.scalar_type());
}

Tensor backward_on_cpu(const Tensor& grad_output, const Tensor& input, int64_t data_channels) {
  const Layout layout(input, data_channels);
  const Tensor dense = layout.dense(input), grad = layout.dense(grad_output);
  const Tensor grad_input = layout.empty(input.sizes(), input);
  const int64_t threads = most_threads();
  if (layout.type == at::kDouble)
    FUSED_RNN_CPU_CALL(gated_activation_backward, grad.const_data_ptr<double>(), dense.const_data_ptr<double>(),
                       grad_input.mutable_data_ptr<double>(), layout.blocks, layout.count, threads);
  else
    FUSED_RNN_CPU_CALL(gated_activation_backward, grad.const_data_ptr<float>(), dense.const_data_ptr<float>(),
                       grad_input.mutable_data_ptr<float>(), layout.blocks, layout.count, threads);
  return grad_input.to(input.scalar_type());
}

Tensor gated_activation(const Tensor& input, int64_t data_channels) {
  check_input(input, data_channels);
#ifdef FUSED_RNN_CUDA
  if (input.is_cuda()) return gated_activation_on_cuda(input, data_channels);
#endif
  return gated_activation_on_cpu(input, data_channels);
}

Tensor gated_activation_backward(const Tensor& grad_output, const Tensor& input, int64_t data_channels) {
  check_input(input, data_channels);
  const auto expected = output_shape(input);
  TORCH_CHECK(grad_output.sizes() == at::IntArrayRef(expected), "Expected grad_output of size ",
              at::IntArrayRef(expected), ", but got grad_output of size ", grad_output.sizes());
  TORCH_CHECK(grad_output.scalar_type() == input.scalar_type(), "Input type (", input.scalar_type(),
              ") and grad_output type (", grad_output.scalar_type(), ") should be the same");
  TORCH_CHECK(grad_output.device() == input.device(), "input is on ", input.device(), ", but grad_output is on ",
              grad_output.device());
#ifdef FUSED_RNN_CUDA
  if (input.is_cuda()) return gated_activation_backward_on_cuda(grad_output, input, data_channels);
#endif
  return backward_on_cpu(grad_output, input, data_channels);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_rnn, CPU, library) {
  library.impl("gated_activation", gated_activation);
  library.impl("gated_activation_backward", gated_activation_backward);
}

#ifdef FUSED_RNN_CUDA
TORCH_LIBRARY_IMPL(fused_rnn, CUDA, library) {
  library.impl("gated_activation", gated_activation);
  library.impl("gated_activation_backward", gated_activation_backward);
}
#endif

TORCH_LIBRARY_IMPL(fused_rnn, Autograd, library) {
  library.impl("gated_activation", torch::autograd::autogradNotImplementedFallback());
  library.impl("gated_activation_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fused_rnn::ops
