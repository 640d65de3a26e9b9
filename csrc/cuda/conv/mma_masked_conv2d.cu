// From the arguments of masked convolution to those of the kernels whose warps multiply by themselves.

#include "cuda/conv/mma_launch.cuh"
#include "cuda/masked_conv2d.h"

namespace fused_rnn::cuda {

// The kernels are built in instances/, so that compilers can work side by side.
#define FUSED_RNN_BUILT_ELSEWHERE(T, gradient)                                                        \
  extern template const char* launch_mma_correlation<T, gradient>(const MmaCorrelationParams& params, \
                                                                  const MmaCorrelationPlan& plan, void* stream);
FUSED_RNN_BUILT_ELSEWHERE(bfloat16, false)
FUSED_RNN_BUILT_ELSEWHERE(float16, false)
FUSED_RNN_BUILT_ELSEWHERE(float, false)
FUSED_RNN_BUILT_ELSEWHERE(bfloat16, true)
FUSED_RNN_BUILT_ELSEWHERE(float16, true)
FUSED_RNN_BUILT_ELSEWHERE(float, true)
extern template const char* launch_mma_weight_gradient<bfloat16>(const MmaWeightGradientParams& params, void* stream);
extern template const char* launch_mma_weight_gradient<float16>(const MmaWeightGradientParams& params, void* stream);

namespace {

template <bool kGradient>
const char* launch(MmaType type, const MmaCorrelationParams& params, const MmaCorrelationPlan& plan, void* stream) {
  switch (type) {
    case MmaType::kBFloat16:
      return launch_mma_correlation<bfloat16, kGradient>(params, plan, stream);
    case MmaType::kFloat16:
      return launch_mma_correlation<float16, kGradient>(params, plan, stream);
    default:
      return launch_mma_correlation<float, kGradient>(params, plan, stream);
  }
}

// The arguments that the forward pass and the input gradient have in common. The gradient reads the taps mirrored.
MmaCorrelationParams correlation(const MaskedConv2dSizes& sizes, bool gradient, const Weights<const void>& weight,
                                 const MmaCorrelationPlan& plan) {
  const Taps taps(sizes);
  const int sign = gradient ? -1 : 1;
  MmaCorrelationParams params = {};
  params.weight = weight.data;
  params.out_stride = weight.out_stride;
  params.tap_stride = weight.tap_stride;
  params.source_channels = static_cast<int>(gradient ? sizes.out_channels : sizes.in_channels);
  params.target_channels = static_cast<int>(gradient ? sizes.in_channels : sizes.out_channels);
  params.pixels = static_cast<int>(sizes.batch * sizes.height * sizes.width);
  params.height = static_cast<int>(sizes.height);
  params.width = static_cast<int>(sizes.width);
  params.taps = taps.count;
  params.row_length = taps.row_length;
  params.first_y = -sign * taps.before_y;
  params.first_x = -sign * taps.before_x;
  params.tap_y = sign * taps.dilation_y;
  params.tap_x = sign * taps.dilation_x;
  params.centre_tap = static_cast<int>(sizes.centre());
  params.ranges = static_cast<int>(sizes.data_channels);
  for (int group = 0; group < params.ranges; ++group) {
    const GroupChannels own = channels_of_group(params.target_channels, params.ranges, group);
    const GroupChannels seen = seen_at_centre(sizes, gradient, group);
    params.range[group] = {static_cast<int>(own.begin), static_cast<int>(own.end), params.channel_tiles,
                           static_cast<int>(seen.begin), static_cast<int>(seen.end)};
    params.channel_tiles += static_cast<int>(divide_up(own.end - own.begin, plan.channels));
  }
  return params;
}

}  // namespace

const char* mma_masked_conv2d(MmaType type, const MaskedConv2dForwardParams<void>& params,
                              const MmaCorrelationPlan& plan, void* stream) {
  MmaCorrelationParams kernel = correlation(params.sizes, false, params.weight, plan);
  kernel.source = params.input.data;
  kernel.bias = params.bias;
  kernel.target = params.output.data;
  kernel.relu = params.activation == MaskedConv2dActivation::kReLU;
  return launch<false>(type, kernel, plan, stream);
}

const char* mma_masked_conv2d_input_gradient(MmaType type, const MaskedConv2dInputGradientParams<void>& params,
                                             const MmaCorrelationPlan& plan, void* stream) {
  MmaCorrelationParams kernel = correlation(params.sizes, true, params.weight, plan);
  kernel.source = params.grad_output.data;
  kernel.target = params.grad_input.data;
  return launch<true>(type, kernel, plan, stream);
}

const char* mma_masked_conv2d_parameter_gradients(MmaType type,
                                                  const MaskedConv2dParameterGradientsParams<void>& params,
                                                  float* scratch, const MmaWeightGradientPlan& plan, void* stream) {
  const MaskedConv2dSizes& sizes = params.sizes;
  int addends = 1;
  while (addends < kMmaMostAddends && plan.splits > 2 * addends) addends *= 2;
  const int64_t threads = kMmaAddThreads / addends;
  const int64_t quads = sizes.out_channels * sizes.taps() * sizes.in_channels / 4;
  const MmaWeightGradientParams kernel = {
      .grad_output = params.grad_output.data,
      .input = params.input.data,
      .slots = scratch,
      .bias_slots = scratch + plan.blocks() * plan.slot_values(),
      .grad_weight = params.grad_weight.data,
      .grad_bias = params.grad_bias,
      .out_stride = params.grad_weight.out_stride,
      .in_stride = params.grad_weight.in_stride,
      .tap_stride = params.grad_weight.tap_stride,
      .in_channels = static_cast<int>(sizes.in_channels),
      .out_channels = static_cast<int>(sizes.out_channels),
      .pixels = static_cast<int>(sizes.batch * sizes.height * sizes.width),
      .height = static_cast<int>(sizes.height),
      .width = static_cast<int>(sizes.width),
      .kernel_taps = static_cast<int>(sizes.taps()),
      .step_y = static_cast<int>(kMmaGradientPixels / sizes.width % sizes.height),
      .step_x = static_cast<int>(kMmaGradientPixels % sizes.width),
      .centre = Centre(sizes),
      .taps = Taps(sizes, /*with_centre=*/true),
      .addends = addends,
      .weight_blocks = params.grad_weight.data ? divide_up(quads, threads) : 0,
      .bias_blocks = params.grad_bias ? divide_up(sizes.out_channels / 4, threads) : 0,
      .plan = plan,
  };
  if (type == MmaType::kTF32) return "there is no kernel for the gradients of parameters in float32";
  return type == MmaType::kBFloat16 ? launch_mma_weight_gradient<bfloat16>(kernel, stream)
                                    : launch_mma_weight_gradient<float16>(kernel, stream);
}

}  // namespace fused_rnn::cuda
