// Masked convolution by the kernels of csrc/cuda/conv/, for the tests to call through ctypes; null, or what is wrong.

#include <limits>
#include <string_view>
#include <vector>

#include "cuda/masked_conv2d.h"
#include "fibers.h"

namespace fused_rnn::cuda {
namespace {

// A masked convolution, as convolution.py has it, too: its arrays, and how it is shared out.
struct Convolution {
  int64_t batch, height, width, in_channels, out_channels, kernel_height, kernel_width;
  int64_t dilation_height, dilation_width, data_channels, dense_taps;
  const void *input, *weight, *bias, *grad_output;
  void *output, *grad_input, *grad_weight, *grad_bias;
  int64_t image_batch_stride, image_channel_stride, image_row_stride, image_column_stride;  // of a first layer's input
  int64_t out_stride, in_stride, tap_stride;                                                // of the weight
  int64_t grad_out_stride, grad_in_stride, grad_tap_stride;                                 // of its gradient
  int32_t rows, channel_groups;  // of a tile; zero for those that are chosen. Tiles of single warps have no rows
  int32_t multiprocessors, element_bytes;
  bool own_group, bfloat16, relu, hopper;

  MaskedConv2dSizes sizes() const {
    MaskedConv2dSizes of = {};
    of.batch = batch, of.height = height, of.width = width;
    of.in_channels = in_channels, of.out_channels = out_channels;
    of.kernel_height = kernel_height, of.kernel_width = kernel_width;
    of.dilation_height = dilation_height, of.dilation_width = dilation_width;
    of.data_channels = data_channels, of.dense_taps = dense_taps, of.own_group = own_group, of.threads = 1;
    return of;
  }
  Device device() const { return {multiprocessors, 227 * 1024, {}, 0, hopper}; }
  MmaType type() const {
    return element_bytes == 4 ? MmaType::kTF32 : bfloat16 ? MmaType::kBFloat16 : MmaType::kFloat16;
  }
  Weights<const void> weights() const { return {weight, out_stride, in_stride, tap_stride}; }
  ImageStrides images() const {
    return {image_batch_stride, image_channel_stride, image_row_stride, image_column_stride};
  }
  MaskedConv2dForwardParams<void> forward() const {
    const auto activation = relu ? MaskedConv2dActivation::kReLU : MaskedConv2dActivation::kNone;
    return {sizes(), {input, true}, weights(), bias, {output, true}, activation, nullptr, {}};
  }
  MaskedConv2dParameterGradientsParams<void> parameter_gradients() const {
    return {sizes(),
            {grad_output, true},
            {input, true},
            {grad_weight, grad_out_stride, grad_in_stride, grad_tap_stride},
            grad_bias};
  }
  CorrelationPlan plan(int64_t target_channels) const {
    return rows == 0 ? plan_correlation(sizes(), target_channels, device())
                     : plan_correlation_with(sizes(), target_channels, device(), rows, channel_groups);
  }
  MmaCorrelationPlan mma_plan(int64_t target_channels) const {
    return channel_groups == 0 ? plan_mma_correlation(sizes(), target_channels, device())
                               : plan_mma_correlation_with(sizes(), target_channels, channel_groups * kChannels);
  }
};

constexpr const char* kNoPlan = "there is no plan with these tiles";

// Memory that a kernel must write before it reads it.
std::vector<float> scratch_of(int64_t values) {
  return std::vector<float>(static_cast<size_t>(values), std::numeric_limits<float>::quiet_NaN());
}

}  // namespace

extern "C" {

// Which kernels compute the three passes, as numbers of the enumeration Kernels, and why not those for boxes.
const char* convolution_choice(const Convolution* of, int32_t (*kernels)[3]) {
  const ConvolutionChoice choice = choose_kernels(of->sizes(), of->device(), of->element_bytes);
  (*kernels)[0] = static_cast<int32_t>(choice.forward);
  (*kernels)[1] = static_cast<int32_t>(choice.input_gradient);
  (*kernels)[2] = static_cast<int32_t>(choice.parameter_gradients);
  return choice.reason;
}

const char* convolution_forward(const Convolution* of) {
  const CorrelationPlan plan = of->plan(of->out_channels);
  return plan.blocks == 0 ? kNoPlan : masked_conv2d(of->bfloat16, of->forward(), plan, nullptr);
}

const char* convolution_input_gradient(const Convolution* of) {
  const CorrelationPlan plan = of->plan(of->in_channels);
  if (plan.blocks == 0) return kNoPlan;
  return masked_conv2d_input_gradient(
      of->bfloat16, {of->sizes(), {of->grad_output, true}, of->weights(), {of->grad_input, true}}, plan, nullptr);
}

const char* convolution_parameter_gradients(const Convolution* of) {
  const WeightGradientPlan plan =
      of->rows == 0 ? plan_weight_gradient(of->sizes(), of->device())
                    : plan_weight_gradient_with(of->sizes(), of->device(), of->channel_groups, of->rows);
  if (plan.blocks == 0) return kNoPlan;
  std::vector<float> scratch = scratch_of(plan.scratch_values());
  return masked_conv2d_parameter_gradients(of->bfloat16, of->parameter_gradients(), scratch.data(), plan, nullptr);
}

const char* convolution_first_layer(const Convolution* of) {
  const FirstLayerPlan plan = plan_first_layer(of->sizes(), of->device());
  return plan.blocks == 0 ? kNoPlan : first_layer(of->bfloat16, of->forward(), of->images(), plan, nullptr);
}

const char* convolution_first_layer_parameter_gradients(const Convolution* of) {
  const FirstLayerPlan plan = plan_first_layer_gradient(of->sizes(), of->device());
  if (plan.blocks == 0) return kNoPlan;
  std::vector<float> scratch = scratch_of(plan.scratch_values());
  return first_layer_parameter_gradients(of->bfloat16, of->parameter_gradients(), of->images(), scratch.data(), plan,
                                         nullptr);
}

const char* convolution_mma_forward(const Convolution* of) {
  return mma_masked_conv2d(of->type(), of->forward(), of->mma_plan(of->out_channels), nullptr);
}

const char* convolution_mma_input_gradient(const Convolution* of) {
  return mma_masked_conv2d_input_gradient(of->type(),
                                          {of->sizes(), {of->grad_output, true}, of->weights(), {of->grad_input, true}},
                                          of->mma_plan(of->in_channels), nullptr);
}

const char* convolution_mma_parameter_gradients(const Convolution* of) {
  const MmaWeightGradientPlan plan =
      of->channel_groups == 0
          ? plan_mma_weight_gradient(of->sizes(), of->device())
          : plan_mma_weight_gradient_with(of->sizes(), of->device(), of->channel_groups * kChannels);
  std::vector<float> scratch = scratch_of(plan.scratch_values());
  return mma_masked_conv2d_parameter_gradients(of->type(), of->parameter_gradients(), scratch.data(), plan, nullptr);
}

// The channels of the tiles that are chosen for single warps: in the forward pass, and for the parameters' gradients.
void convolution_mma_channels(const Convolution* of, int32_t (*channels)[2]) {
  (*channels)[0] = of->mma_plan(of->out_channels).channels;
  (*channels)[1] = plan_mma_weight_gradient(of->sizes(), of->device()).channels;
}

// The tiles that are chosen for a pass: its rows and groups of 64 channels.
void convolution_tiles(const Convolution* of, const char* pass, int32_t (*tiles)[2]) {
  if (std::string_view(pass) == "parameter_gradients") {
    const WeightGradientPlan plan = plan_weight_gradient(of->sizes(), of->device());
    (*tiles)[0] = plan.rows, (*tiles)[1] = plan.channel_groups;
  } else {
    const bool forward = std::string_view(pass) == "forward";
    const CorrelationPlan plan = of->plan(forward ? of->out_channels : of->in_channels);
    (*tiles)[0] = plan.rows, (*tiles)[1] = plan.channel_groups;
  }
}

bool convolution_is_built(int rows, int channel_groups) { return is_built(rows, channel_groups); }

}  // extern "C"

}  // namespace fused_rnn::cuda
