// Random masked convolutions, forward and backward.

#pragma once

#include "arrays.h"
#include "params/masked_conv2d.h"

using namespace fused_rnn;

struct ConvolutionProblem {
  MaskedConv2dSizes sizes;
  bool input_last, output_last, biased;
  MaskedConv2dActivation activation = MaskedConv2dActivation::kNone;
  bool residual, keeps_sums;

  explicit ConvolutionProblem(Random& random) {
    const auto channels = [&] { return random.once_in(2) ? random.between(1, 8) : random.between(1, 70); };
    sizes = {random.between(1, 3),
             random.between(1, 9),
             random.between(1, 20),
             channels(),
             channels(),
             2 * random.between(0, 2) + 1,
             2 * random.between(0, 3) + 1,
             random.between(1, 2),
             random.between(1, 2),
             1,
             0,
             random.once_in(2),
             random.between(1, 2)};
    if (random.once_in(3) && sizes.in_channels >= 3 && sizes.out_channels >= 3) sizes.data_channels = 3;
    const int64_t row = sizes.kernel_height / 2 * sizes.kernel_width;
    if (sizes.data_channels == 1 && random.once_in(3))  // the types of a vertical stack
      sizes.dense_taps = row + (sizes.own_group ? sizes.kernel_width : 0);
    else
      sizes.dense_taps = sizes.centre() + (sizes.own_group && sizes.data_channels == 1);
    input_last = random.once_in(2), output_last = random.once_in(2), biased = random.once_in(2);
    residual = random.once_in(2);
    if (random.once_in(3)) activation = MaskedConv2dActivation::kReLU;
    if (random.once_in(2) && sizes.out_channels % (2 * sizes.data_channels) == 0)
      activation = MaskedConv2dActivation::kGated;
    keeps_sums = activation != MaskedConv2dActivation::kNone && random.once_in(2);
  }
  int64_t pixels() const { return sizes.batch * sizes.height * sizes.width; }
  std::string text() const {
    char line[256];
    std::snprintf(line, sizeof line,
                  "masked_conv2d (%ld, %ld, %ld, %ld x %ld, k %ld x %ld) dilation %ld x %ld groups %ld dense taps %ld "
                  "activation %d residual %d sums %d",
                  sizes.batch, sizes.in_channels, sizes.out_channels, sizes.height, sizes.width, sizes.kernel_height,
                  sizes.kernel_width, sizes.dilation_height, sizes.dilation_width, sizes.data_channels,
                  sizes.dense_taps, static_cast<int>(activation), residual, keeps_sums);
    return line;
  }
};

// The params of all three kernels, with the arrays that they point to.
template <typename T>
struct ConvolutionCall {
  Arrays<T> arrays;
  MaskedConv2dForwardParams<T> forward;
  MaskedConv2dInputGradientParams<T> input_gradient;
  MaskedConv2dParameterGradientsParams<T> parameter_gradients;

  ConvolutionCall(const ConvolutionProblem& p, Random& random) : arrays(random) {
    const MaskedConv2dSizes& s = p.sizes;
    const int64_t taps = s.taps(), inputs = p.pixels() * s.in_channels, outputs = p.pixels() * s.out_channels;
    const int64_t weights = s.out_channels * s.in_channels * taps, out_stride = s.in_channels * taps;
    const Images<const T> input = {arrays.input(inputs), p.input_last};
    const Images<const T> grad_output = {arrays.input(outputs), p.output_last};
    const Weights<const T> weight = {arrays.input(weights), out_stride, taps, 1};
    const T* bias = p.biased ? arrays.input(s.out_channels) : nullptr;
    T* grad_bias = p.biased ? arrays.output("grad_bias", s.out_channels) : nullptr;
    forward = {s, input, weight, bias, {}, p.activation, nullptr, {}};
    const int64_t activated = p.pixels() * forward.output_channels();
    forward.output = {arrays.output("output", activated), p.output_last};
    if (p.residual) forward.residual = arrays.input(activated);
    if (p.keeps_sums) forward.sums = {arrays.output("sums", outputs), p.output_last};
    input_gradient = {s, grad_output, weight, {arrays.output("grad_input", inputs), p.input_last}};
    parameter_gradients = {
        s, grad_output, input, {arrays.output("grad_weight", weights), out_stride, taps, 1}, grad_bias};
  }
};
