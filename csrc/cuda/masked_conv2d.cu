// From the arguments of masked convolution to those of its kernels.

#include "cuda/conv/launch.cuh"
#include "cuda/masked_conv2d.h"

namespace fused_rnn::cuda {

// The kernels are built in conv/instances/, so that compilers can work side by side.
extern template const char* launch_correlation<true, false>(const CorrelationParams& params, void* stream);
extern template const char* launch_correlation<false, false>(const CorrelationParams& params, void* stream);
extern template const char* launch_correlation<true, true>(const CorrelationParams& params, void* stream);
extern template const char* launch_correlation<false, true>(const CorrelationParams& params, void* stream);
extern template const char* launch_first_layer<true>(const FirstLayerParams& params, void* stream);
extern template const char* launch_first_layer<false>(const FirstLayerParams& params, void* stream);
extern template const char* launch_first_layer_gradient<true>(const FirstLayerParams& params, void* stream);
extern template const char* launch_first_layer_gradient<false>(const FirstLayerParams& params, void* stream);
extern template const char* launch_weight_gradient<true, 1>(const WeightGradientParams& params, void* stream);
extern template const char* launch_weight_gradient<true, 2>(const WeightGradientParams& params, void* stream);
extern template const char* launch_weight_gradient<false, 1>(const WeightGradientParams& params, void* stream);
extern template const char* launch_weight_gradient<false, 2>(const WeightGradientParams& params, void* stream);

namespace {

constexpr int64_t kBytes = 2;  // of a value

// Describes the first `channels` of images with so many channels in all, channels last, with boxes of 64 channels; the
// columns of pixels from `first_column` on.
const char* map_images(TensorMap& map, bool bfloat16, const void* data, const MaskedConv2dSizes& sizes, int64_t all,
                       int64_t channels, int box_width, int box_height, int64_t first_column = 0) {
  const int64_t dims[] = {channels, sizes.width - first_column, sizes.height, sizes.batch};
  const int64_t strides[] = {all * kBytes, sizes.width * all * kBytes, sizes.height * sizes.width * all * kBytes};
  const int box[] = {kChannels, box_width, box_height, 1};
  return make_tensor_map(map, static_cast<const char*>(data) + first_column * strides[0], bfloat16, 4, dims, strides,
                         box);
}

// Describes the first channels of a weight, with boxes of one tap, 64 channels by 64.
const char* map_weight(TensorMap& map, bool bfloat16, const Weights<const void>& weight, const MaskedConv2dSizes& sizes,
                       int64_t in_channels, int64_t out_channels) {
  const int64_t dims[] = {in_channels, sizes.taps(), out_channels};
  const int64_t strides[] = {weight.tap_stride * kBytes, weight.out_stride * kBytes};
  const int box[] = {kChannels, 1, kChannels};
  return make_tensor_map(map, weight.data, bfloat16, 3, dims, strides, box);
}

// What one pass over a layer reads and writes.
struct Arrays {
  const void* source;
  Weights<const void> weight;
  void* target;
  int64_t source_channels, target_channels;
};

// Sets the range of target channels of a group, of which there may be one.
const char* set_range(ChannelRange& range, bool bfloat16, const MaskedConv2dSizes& sizes, bool gradient,
                      const Arrays& arrays, int64_t group, int rows) {
  const int64_t groups = sizes.data_channels;
  const GroupChannels own = channels_of_group(arrays.target_channels, groups, group);
  range.begin = static_cast<int>(own.begin);
  range.end = static_cast<int>(own.end);
  const char* error = map_images(range.target, bfloat16, arrays.target, sizes, arrays.target_channels, own.end,
                                 kTileWidth, stored_rows(rows));
  if (error) return error;
  const GroupChannels seen = seen_at_centre(sizes, gradient, group);
  if (seen.begin >= seen.end) return nullptr;
  range.centre_begin = static_cast<int>(seen.begin);
  range.centre_end = static_cast<int>(seen.end);
  error = map_images(range.source, bfloat16, arrays.source, sizes, arrays.source_channels, range.centre_end, kTileWidth,
                     rows);
  if (error) return error;
  return map_weight(range.weight, bfloat16, arrays.weight, sizes, gradient ? sizes.in_channels : range.centre_end,
                    gradient ? range.centre_end : sizes.out_channels);
}

// The arguments that the forward pass and the input gradient have in common. The gradient reads the taps mirrored.
const char* correlation(CorrelationParams& params, bool bfloat16, const MaskedConv2dSizes& sizes, bool gradient,
                        const Arrays& arrays, const CorrelationPlan& plan) {
  const Taps taps(sizes);
  const int pitch = kTileWidth + taps.span_x(), tap_y = taps.dilation_y * pitch, tap_x = taps.dilation_x;
  params.source_channels = static_cast<int>(arrays.source_channels);
  params.before_y = gradient ? taps.span_y() - taps.before_y : taps.before_y;
  params.before_x = gradient ? taps.span_x() - taps.before_x : taps.before_x;
  params.taps = taps.count;
  params.row_length = taps.row_length;
  params.first_row = gradient ? taps.span_y() * pitch + taps.span_x() : 0;
  params.tap_y = gradient ? -tap_y : tap_y;
  params.tap_x = gradient ? -tap_x : tap_x;
  params.pitch = pitch;
  params.box_rows = plan.rows + taps.span_y();
  params.columns = static_cast<int>(divide_up(sizes.width, kTileWidth));
  params.rows = static_cast<int>(divide_up(sizes.height, plan.rows));
  params.centre_tap = static_cast<int>(sizes.centre());
  params.ranges = static_cast<int>(sizes.data_channels);
  params.plan = plan;
  const char* error = nullptr;
  for (int group = 0; group < params.ranges && !error; ++group) {
    ChannelRange& range = params.range[group];
    error = set_range(range, bfloat16, sizes, gradient, arrays, group, plan.rows);
    range.first_block = params.channel_blocks;
    params.channel_blocks += static_cast<int>(divide_up(range.end - range.begin, plan.channel_groups * kChannels));
  }
  if (!error)
    error = map_images(params.source, bfloat16, arrays.source, sizes, arrays.source_channels, arrays.source_channels,
                       pitch, params.box_rows);
  // The gradient may read more input channels than there are, up to those of the next tap: they are rows of the product
  // that nobody reads. What is outside the tensor would take longer to fill with zeros.
  const int64_t in_channels = gradient ? arrays.weight.tap_stride : sizes.in_channels;
  if (!error) error = map_weight(params.weight, bfloat16, arrays.weight, sizes, in_channels, sizes.out_channels);
  return error;
}

// Describes the first `channels` of images of out_channels as rows of pixels, with boxes of 64 channels.
const char* map_pixels(TensorMap& map, bool bfloat16, const void* data, const MaskedConv2dSizes& sizes,
                       int64_t channels, int box_pixels) {
  const int64_t pixels = sizes.batch * sizes.height * sizes.width, bytes = sizes.out_channels * kBytes;
  const int64_t dims[] = {channels, pixels, 1, 1}, strides[] = {bytes, pixels * bytes, pixels * bytes};
  const int box[] = {kChannels, box_pixels, 1, 1};
  return make_tensor_map(map, data, bfloat16, 4, dims, strides, box);
}

// The arguments that both passes over a first layer have in common.
FirstLayerParams first_layer_params(const MaskedConv2dSizes& sizes, const void* input, const ImageStrides& strides,
                                    const FirstLayerPlan& plan) {
  return {.input = input,
          .batch_stride = strides.batch,
          .row_stride = strides.row,
          .column_stride = strides.column,
          .channel_stride = strides.channel,
          .weight = nullptr,
          .out_stride = 0,
          .in_stride = 0,
          .tap_stride = 0,
          .bias = nullptr,
          .grad_output = {},
          .slots = nullptr,
          .grad_weight = nullptr,
          .grad_bias = nullptr,
          .taps = Taps(sizes),
          .kernel_taps = static_cast<int>(sizes.taps()),
          .in_channels = static_cast<int>(sizes.in_channels),
          .out_channels = static_cast<int>(sizes.out_channels),
          .height = static_cast<int>(sizes.height),
          .width = static_cast<int>(sizes.width),
          .pixels = static_cast<int>(sizes.batch * sizes.height * sizes.width),
          .columns = static_cast<int>(Taps(sizes, /*with_centre=*/true).count * sizes.in_channels),
          .pitch = static_cast<int>(line_elements(sizes)),
          .ranges = static_cast<int>(sizes.data_channels),
          .centre = Centre(sizes),
          .relu = false,
          .plan = plan,
          .range = {}};
}

}  // namespace

const char* masked_conv2d(bool bfloat16, const MaskedConv2dForwardParams<void>& params, const CorrelationPlan& plan,
                          void* stream) {
  CorrelationParams kernel = {};
  kernel.bias = params.bias;
  kernel.relu = params.activation == MaskedConv2dActivation::kReLU;
  const MaskedConv2dSizes& sizes = params.sizes;
  const char* error =
      correlation(kernel, bfloat16, sizes, false,
                  {params.input.data, params.weight, params.output.data, sizes.in_channels, sizes.out_channels}, plan);
  if (error) return error;
  return bfloat16 ? launch_correlation<true, false>(kernel, stream) : launch_correlation<false, false>(kernel, stream);
}

const char* masked_conv2d_input_gradient(bool bfloat16, const MaskedConv2dInputGradientParams<void>& params,
                                         const CorrelationPlan& plan, void* stream) {
  CorrelationParams kernel = {};
  const MaskedConv2dSizes& sizes = params.sizes;
  const char* error = correlation(
      kernel, bfloat16, sizes, true,
      {params.grad_output.data, params.weight, params.grad_input.data, sizes.out_channels, sizes.in_channels}, plan);
  if (error) return error;
  return bfloat16 ? launch_correlation<true, true>(kernel, stream) : launch_correlation<false, true>(kernel, stream);
}

const char* masked_conv2d_parameter_gradients(bool bfloat16, const MaskedConv2dParameterGradientsParams<void>& params,
                                              float* scratch, const WeightGradientPlan& plan, void* stream) {
  const MaskedConv2dSizes& sizes = params.sizes;
  const Taps taps(sizes, /*with_centre=*/true);
  const int pitch = kTileWidth + ((taps.row_length < kMostTaps ? taps.row_length : kMostTaps) - 1) * taps.dilation_x;
  WeightGradientParams kernel = {
      .grad_output = {},
      .grad_tail = {},
      .input = {},
      .slots = scratch,
      .bias_slots = scratch + plan.blocks * plan.slot_values(),
      .grad_weight = params.grad_weight.data,
      .grad_bias = params.grad_bias,
      .out_stride = params.grad_weight.out_stride,
      .in_stride = params.grad_weight.in_stride,
      .tap_stride = params.grad_weight.tap_stride,
      .in_channels = static_cast<int>(sizes.in_channels),
      .out_channels = static_cast<int>(sizes.out_channels),
      .kernel_taps = static_cast<int>(sizes.taps()),
      .centre = Centre(sizes),
      .taps = taps,
      .runs = count_runs(taps),
      .in_blocks = static_cast<int>(divide_up(sizes.in_channels, kChannels)),
      .out_blocks = static_cast<int>(divide_up(sizes.out_channels, plan.channel_groups * kChannels)),
      .turns = 0,
      .bias_parts = 0,
      .run = {},
      .pitch = pitch,
      .width = static_cast<int>(sizes.width),
      .height = static_cast<int>(sizes.height),
      .columns = static_cast<int>(divide_up(sizes.width, kTileWidth)),
      .rows = static_cast<int>(divide_up(sizes.height, plan.rows)),
      .addends = 1,
      .plan = plan,
  };
  // Runs of the count whose blocks are done first take turns with the bias gradient.
  const auto time = [&](int count) { return run_cost(count) * divide_up(plan.tiles, plan.splits[count - 1]); };
  int soonest = run_at(taps, 0).count, first_block = 0;
  for (int i = 1; i < kernel.runs; ++i)
    if (const int count = run_at(taps, i).count; time(count) < time(soonest)) soonest = count;
  for (int i = 0; i < kernel.runs; ++i) {
    const Run run = run_at(taps, i);
    kernel.run[i] = {run, first_block, run.count == soonest ? kernel.turns++ : -1};
    first_block += kernel.in_blocks * kernel.out_blocks * plan.splits[run.count - 1];
  }
  kernel.bias_parts = kernel.turns * kernel.in_blocks * plan.splits[soonest - 1];
  for (int i = 0; i < kernel.runs && kernel.addends < kAddGroups; ++i)
    while (kernel.addends < kAddGroups && plan.splits[kernel.run[i].run.count - 1] > 2 * kernel.addends)
      kernel.addends *= 2;
  const char* error = map_images(kernel.grad_output, bfloat16, params.grad_output.data, sizes, sizes.out_channels,
                                 sizes.out_channels, kTileWidth, plan.rows);
  if (!error && sizes.width % kTileWidth != 0)
    error = map_images(kernel.grad_tail, bfloat16, params.grad_output.data, sizes, sizes.out_channels,
                       sizes.out_channels, kTileWidth, plan.rows, sizes.width / kTileWidth * kTileWidth);
  if (!error)
    error = map_images(kernel.input, bfloat16, params.input.data, sizes, sizes.in_channels, sizes.in_channels, pitch,
                       plan.rows);
  if (error) return error;
  if (plan.channel_groups == 1)
    return bfloat16 ? launch_weight_gradient<true, 1>(kernel, stream)
                    : launch_weight_gradient<false, 1>(kernel, stream);
  return bfloat16 ? launch_weight_gradient<true, 2>(kernel, stream) : launch_weight_gradient<false, 2>(kernel, stream);
}

const char* first_layer(bool bfloat16, const MaskedConv2dForwardParams<void>& params, const ImageStrides& strides,
                        const FirstLayerPlan& plan, void* stream) {
  const MaskedConv2dSizes& sizes = params.sizes;
  FirstLayerParams kernel = first_layer_params(sizes, params.input.data, strides, plan);
  kernel.weight = params.weight.data;
  kernel.out_stride = params.weight.out_stride;
  kernel.in_stride = params.weight.in_stride;
  kernel.tap_stride = params.weight.tap_stride;
  kernel.bias = params.bias;
  kernel.relu = params.activation == MaskedConv2dActivation::kReLU;
  int first_block = 0;
  for (int group = 0; group < kernel.ranges; ++group) {
    ColumnRange& range = kernel.range[group];
    const GroupChannels own = channels_of_group(sizes.out_channels, sizes.data_channels, group);
    range.begin = static_cast<int>(own.begin);
    range.end = static_cast<int>(own.end);
    range.first_block = first_block;
    first_block += static_cast<int>(divide_up(own.end - own.begin, kChannels));
    range.columns = static_cast<int>(sizes.dense_taps * sizes.in_channels + seen_at_centre(sizes, false, group).end);
    const char* error = map_pixels(range.target, bfloat16, params.output.data, sizes, own.end, 64);
    if (error) return error;
  }
  return bfloat16 ? launch_first_layer<true>(kernel, stream) : launch_first_layer<false>(kernel, stream);
}

const char* first_layer_parameter_gradients(bool bfloat16, const MaskedConv2dParameterGradientsParams<void>& params,
                                            const ImageStrides& strides, float* scratch, const FirstLayerPlan& plan,
                                            void* stream) {
  FirstLayerParams kernel = first_layer_params(params.sizes, params.input.data, strides, plan);
  kernel.slots = scratch;
  kernel.grad_weight = params.grad_weight.data;
  kernel.grad_bias = params.grad_bias;
  kernel.out_stride = params.grad_weight.out_stride;
  kernel.in_stride = params.grad_weight.in_stride;
  kernel.tap_stride = params.grad_weight.tap_stride;
  const char* error = map_pixels(kernel.grad_output, bfloat16, params.grad_output.data, params.sizes,
                                 params.sizes.out_channels, kFirstPixels);
  if (error) return error;
  return bfloat16 ? launch_first_layer_gradient<true>(kernel, stream)
                  : launch_first_layer_gradient<false>(kernel, stream);
}

}  // namespace fused_rnn::cuda
