// See plan.h.

#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/conv/correlation.cuh"
#include "cuda/conv/first_layer.cuh"
#include "cuda/conv/mma_plan.h"
#include "cuda/conv/plan.h"
#include "cuda/conv/weight_gradient.cuh"

namespace fused_rnn::cuda {
namespace {

constexpr int64_t kReservedBytes = 1024;  // of shared memory, by the system for each block
constexpr int64_t kMostBox = 256;         // rows or columns of a box that is copied at once

// Fits the stages of a correlation's rings into `shared_bytes`; whether they fit.
bool fit(CorrelationPlan& plan, const Taps& taps, int64_t shared_bytes, bool deep) {
  const int64_t width = kTileWidth + taps.span_x(), height = plan.rows + taps.span_y();
  if (width > kMostBox || height > kMostBox) return false;
  plan.box_bytes = round_up(width * height * kRowBytes, kAlignment);
  for (plan.source_stages = deep ? 2 : 1; plan.source_stages > 0; --plan.source_stages) {
    const int least = 3;
    for (plan.weight_stages = CorrelationMemory::kMostWeightStages; plan.weight_stages >= least; --plan.weight_stages) {
      plan.shared_bytes = CorrelationMemory::bytes(plan);
      if (plan.shared_bytes <= shared_bytes) return true;
    }
  }
  return false;
}

// The time that a correlation takes, about, where each tile sums so many taps over so many blocks of 64 channels. The
// numbers are fitted to what an H200 took (benchmarks/results/nvidia-h200-masked-conv-tiles.csv): a matrix instruction
// takes half as many cycles as it has columns, but at least some; a tile ends with storing it, which other blocks of
// the multiprocessor hide in part; and for each block of channels it waits for their pixels, which takes longer where
// nothing else runs meanwhile.
double estimate(const CorrelationPlan& plan, int64_t taps, int64_t depth_blocks, const Device& device) {
  constexpr double kCyclesOfMicrosecond = 1755, kStart = 5.1;
  const double columns = plan.rows * kTileWidth;
  const double instructions = double(4 * taps * depth_blocks * plan.channel_groups) * std::max(columns / 2, 40.0);
  const double store = (50 + 6.6 * columns) * (plan.channel_groups == 1 ? 1 / 1.3 : plan.channel_groups);
  const bool alone = plan.source_stages == 1 && plan.tiles <= device.multiprocessors;
  const double wait = double(depth_blocks) * (alone ? 2100 : 470);
  const double rounds = double(divide_up(plan.tiles, device.multiprocessors));
  return kStart + rounds * (instructions + store + wait) / kCyclesOfMicrosecond;
}

// Gives the units of a weight gradient their blocks: as many as run at once, or a small multiple of that, so that the
// slowest of them takes as little time as can be.
void share_out(WeightGradientPlan& plan, const Taps& taps, const Device& device) {
  constexpr int kLeastTiles = 4;  // of a block, since adding its slot costs, too
  constexpr int kMostRounds = 4;
  constexpr int64_t kStart = 100;  // what a round of blocks takes besides, to start and to store its sums
  const int runs = count_runs(taps), most_splits = std::max(1, plan.tiles / kLeastTiles);
  int64_t units[kMostTaps] = {};
  for (int i = 0; i < runs; ++i) units[run_at(taps, i).count - 1] += plan.units / runs;
  // The fewest blocks of a unit of such a run with which none takes longer than `time`.
  const auto splits_for = [&](int count, int64_t time) {
    const int64_t tiles = std::max<int64_t>(1, time / run_cost(count));
    return static_cast<int>(std::min<int64_t>(most_splits, divide_up(plan.tiles, tiles)));
  };
  const auto blocks_for = [&](int64_t time) {
    int64_t blocks = 0;
    for (int count = 1; count <= kMostTaps; ++count) blocks += units[count - 1] * splits_for(count, time);
    return blocks;
  };
  int64_t best = std::numeric_limits<int64_t>::max();
  for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
    const int64_t most_blocks = std::max<int64_t>(plan.units, int64_t(rounds) * device.multiprocessors);
    int64_t shortest = 1, longest = run_cost(kMostTaps) * plan.tiles;
    while (shortest < longest) {
      const int64_t middle = (shortest + longest) / 2;
      blocks_for(middle) <= most_blocks ? longest = middle : shortest = middle + 1;
    }
    const int64_t blocks = blocks_for(shortest);
    int64_t time = 0;
    for (int count = 1; count <= kMostTaps; ++count)
      if (units[count - 1] > 0)
        time = std::max(time, run_cost(count) * divide_up(plan.tiles, splits_for(count, shortest)));
    const int64_t all = divide_up(blocks, device.multiprocessors) * (time + kStart);
    if (all >= best) continue;
    best = all;
    plan.blocks = static_cast<int>(blocks);
    for (int count = 1; count <= kMostTaps; ++count) plan.splits[count - 1] = splits_for(count, shortest);
  }
}

// A plan with these tiles and without blocks, or without units if shared memory has no room for it.
WeightGradientPlan shape_weight_gradient(const MaskedConv2dSizes& sizes, const Device& device, int channel_groups,
                                         int rows) {
  const Taps taps(sizes, /*with_centre=*/true);
  WeightGradientPlan plan = {};
  plan.channel_groups = channel_groups;
  plan.rows = rows;
  const int64_t pitch = kTileWidth + int64_t(std::min(kMostTaps, taps.row_length) - 1) * taps.dilation_x;
  plan.stage_bytes = round_up((channel_groups * kTileWidth + pitch) * rows * kRowBytes, kAlignment);
  plan.stages = WeightGradientMemory::kMostStages;
  while (plan.stages > 0 && WeightGradientMemory::bytes(plan) > device.shared_bytes) --plan.stages;
  if (pitch > kMostBox || plan.stages < 3 || count_runs(taps) > kMostRuns) return {};
  plan.shared_bytes = WeightGradientMemory::bytes(plan);
  plan.units = int64_t(count_runs(taps)) * divide_up(sizes.in_channels, kChannels) *
               divide_up(sizes.out_channels, channel_groups * kChannels);
  plan.tiles = static_cast<int>(divide_up(sizes.width, kTileWidth) * divide_up(sizes.height, rows) * sizes.batch);
  return plan;
}

// The columns of the matrix of a first layer: its active taps and channels.
int64_t count_columns(const MaskedConv2dSizes& sizes) {
  return Taps(sizes, /*with_centre=*/true).count * sizes.in_channels;
}

// Why no kernels for Hopper serve a layer in half precision; null if some do.
const char* why_no_kernels(const MaskedConv2dSizes& sizes) {
  if (sizes.out_channels % 8) return "the number of output channels is not a multiple of 8";
  if (const char* reason = why_no_sizes(sizes)) return reason;
  if (!groups_begin_at_multiples(sizes.out_channels, sizes.data_channels, 8))
    return "the output channels of a group do not begin at a multiple of 8";
  return nullptr;
}

// Why the kernels that copy boxes of 64 channels do not serve such a layer; null if they do.
const char* why_no_boxes(const MaskedConv2dSizes& sizes, const Device& device) {
  if (sizes.in_channels % 8) return "the number of input channels is not a multiple of 8";
  if (!groups_begin_at_multiples(sizes.in_channels, sizes.data_channels, 8))
    return "the input channels of a group do not begin at a multiple of 8";
  // The smallest tiles take the least shared memory.
  if (plan_correlation_with(sizes, sizes.out_channels, device, 8, 1).blocks == 0 ||
      plan_correlation_with(sizes, sizes.in_channels, device, 8, 1).blocks == 0 ||
      shape_weight_gradient(sizes, device, 1, 2).units == 0)
    return "the taps reach too far for shared memory";
  return nullptr;
}

// The bytes of the lines of images that the taps of a first layer's tile reach.
int64_t count_line_bytes(const MaskedConv2dSizes& sizes) {
  const Taps taps(sizes, /*with_centre=*/true);
  const int64_t lines = divide_up(kFirstPixels - 1, sizes.width) + 1 + taps.before_y;
  return lines * line_elements(sizes) * 2;
}

}  // namespace

GroupChannels seen_at_centre(const MaskedConv2dSizes& sizes, bool gradient, int64_t group) {
  if (!sizes.centre_depends_on_groups()) return {0, 0};
  const int64_t channels = gradient ? sizes.out_channels : sizes.in_channels;
  const GroupChannels own = channels_of_group(channels, sizes.data_channels, group);
  if (gradient) return {sizes.own_group ? own.begin : own.end, channels};
  return {0, sizes.own_group ? own.end : own.begin};
}

const char* why_no_sizes(const MaskedConv2dSizes& sizes) {
  if (sizes.data_channels > kMostGroups) return "there are more than 4 groups of channels";
  if (sizes.dense_taps == 0 && !(sizes.centre_depends_on_groups() && sizes.own_group))
    return "no tap is active, or none for some channels";
  if (sizes.batch == 0 || sizes.in_channels == 0) return "the images are empty";
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2, kMostReach = std::numeric_limits<int16_t>::max();
  if (std::max({sizes.height * sizes.width * sizes.batch, sizes.in_channels, sizes.out_channels, sizes.taps()}) > kMost)
    return "a size is too large";
  if (sizes.dilation_height * sizes.kernel_height > kMostReach ||
      sizes.dilation_width * sizes.kernel_width > kMostReach)
    return "the taps reach too far";
  return nullptr;
}

MaskedConv2dSizes pad_in_channels(MaskedConv2dSizes sizes) {
  if (!sizes.centre_depends_on_groups()) sizes.in_channels = round_up(sizes.in_channels, 8);
  return sizes;
}

ConvolutionChoice choose_kernels(const MaskedConv2dSizes& sizes, const Device& device, int element_bytes) {
  constexpr auto kRectangles = Kernels::kRectangles, kMma = Kernels::kMma;
  if (!device.hopper) {
    if (const char* reason = why_no_mma(sizes, device, element_bytes))
      return {kRectangles, kRectangles, kRectangles, reason};
    if (element_bytes == 2) return {kMma, kMma, kMma, nullptr};
    return {kMma, kMma, kRectangles, "the kernels for gradients of parameters are for bfloat16 and float16"};
  }
  if (element_bytes != 2)
    return {kRectangles, kRectangles, kRectangles, "the kernels for Hopper are for bfloat16 and float16"};
  if (const char* reason = why_no_kernels(sizes)) return {kRectangles, kRectangles, kRectangles, reason};
  const char* reason = why_no_boxes(sizes, device);
  const Kernels others = reason ? kRectangles : Kernels::kBoxes;
  ConvolutionChoice choice = {others, others, others, reason};
  // The input gradient of any number of channels is computed as if there were more; see pad_in_channels.
  if (why_no_boxes(pad_in_channels(sizes), device) == nullptr) choice.input_gradient = Kernels::kBoxes;
  if (sizes.in_channels < kFewChannels) {
    if (plan_first_layer(sizes, device).blocks > 0) choice.forward = Kernels::kFirstLayer;
    if (plan_first_layer_gradient(sizes, device).blocks > 0) choice.parameter_gradients = Kernels::kFirstLayer;
  }
  return choice;
}

CorrelationPlan plan_correlation_with(const MaskedConv2dSizes& sizes, int64_t target_channels, const Device& device,
                                      int rows, int channel_groups) {
  const int64_t source_channels = target_channels == sizes.out_channels ? sizes.in_channels : sizes.out_channels;
  CorrelationPlan plan = {};
  plan.rows = rows;
  plan.channel_groups = channel_groups;
  const int64_t on_each = blocks_on_each(channel_groups);
  if (!is_built(rows, channel_groups) ||
      !fit(plan, Taps(sizes), (device.shared_bytes + kReservedBytes) / on_each - kReservedBytes,
           source_channels > kChannels))
    return {};
  int64_t channel_blocks = 0;
  for (int64_t group = 0; group < sizes.data_channels; ++group) {
    const GroupChannels of = channels_of_group(target_channels, sizes.data_channels, group);
    channel_blocks += divide_up(of.end - of.begin, channel_groups * kChannels);
  }
  plan.tiles = divide_up(sizes.width, kTileWidth) * divide_up(sizes.height, rows) * sizes.batch * channel_blocks;
  plan.blocks = std::min(plan.tiles, device.multiprocessors * on_each);
  plan.microseconds =
      estimate(plan, Taps(sizes, /*with_centre=*/true).count, divide_up(source_channels, kChannels), device);
  return plan;
}

CorrelationPlan plan_correlation(const MaskedConv2dSizes& sizes, int64_t target_channels, const Device& device) {
  CorrelationPlan best = {};
  for (int channel_groups : {1, 2})
    for (int rows : {32, 28, 16, 14, 8}) {
      const CorrelationPlan plan = plan_correlation_with(sizes, target_channels, device, rows, channel_groups);
      if (plan.blocks > 0 && (best.blocks == 0 || plan.microseconds < best.microseconds)) best = plan;
    }
  return best;
}

WeightGradientPlan plan_weight_gradient_with(const MaskedConv2dSizes& sizes, const Device& device, int channel_groups,
                                             int rows) {
  WeightGradientPlan plan = shape_weight_gradient(sizes, device, channel_groups, rows);
  if (plan.units > 0) share_out(plan, Taps(sizes, /*with_centre=*/true), device);
  return plan;
}

WeightGradientPlan plan_weight_gradient(const MaskedConv2dSizes& sizes, const Device& device) {
  WeightGradientPlan best = {};
  double best_time = 0;
  for (int channel_groups : {1, 2})
    for (int rows = 16; rows >= 2; rows -= 2) {
      const WeightGradientPlan plan = shape_weight_gradient(sizes, device, channel_groups, rows);
      if (plan.units == 0) continue;
      // Two groups share the pixels that they multiply with, so that they take less than twice as long as one; where
      // that is for nothing, as there are no more than 64 channels in a last unit, one is faster.
      const double time = double(plan.tiles) * rows * double(plan.units) * (channel_groups == 1 ? 1 : 1.6);
      if (best.units == 0 || time < best_time) {
        best = plan;
        best_time = time;
      }
    }
  if (best.units > 0) share_out(best, Taps(sizes, /*with_centre=*/true), device);
  return best;
}

FirstLayerPlan plan_first_layer(const MaskedConv2dSizes& sizes, const Device& device) {
  FirstLayerPlan plan = {};
  plan.line_bytes = count_line_bytes(sizes);
  plan.depth_blocks = static_cast<int>(divide_up(count_columns(sizes), kChannels));
  for (int64_t group = 0; group < sizes.data_channels; ++group) {
    const GroupChannels of = channels_of_group(sizes.out_channels, sizes.data_channels, group);
    plan.out_blocks += static_cast<int>(divide_up(of.end - of.begin, kChannels));
  }
  plan.shared_bytes = FirstLayerMemory::forward_bytes(plan);
  if (count_columns(sizes) > kMostColumns || plan.shared_bytes > device.shared_bytes) return {};
  plan.tiles = static_cast<int>(divide_up(sizes.batch * sizes.height * sizes.width, kFirstPixels));
  const int on_each = 2 * (plan.shared_bytes + kReservedBytes) <= device.shared_bytes + kReservedBytes ? 2 : 1;
  plan.blocks = std::min(plan.tiles, on_each * device.multiprocessors);
  return plan;
}

FirstLayerPlan plan_first_layer_gradient(const MaskedConv2dSizes& sizes, const Device& device) {
  FirstLayerPlan plan = {};
  plan.line_bytes = count_line_bytes(sizes);
  plan.depth_blocks = static_cast<int>(divide_up(count_columns(sizes) + 1, kChannels));
  plan.out_blocks = static_cast<int>(divide_up(sizes.out_channels, kChannels));
  plan.shared_bytes = FirstLayerMemory::gradient_bytes(plan);
  if (!is_built_first(plan.out_blocks, plan.depth_blocks) || plan.shared_bytes > device.shared_bytes) return {};
  plan.tiles = static_cast<int>(divide_up(sizes.batch * sizes.height * sizes.width, kFirstPixels));
  plan.blocks = std::min(plan.tiles, device.multiprocessors * first_blocks_on_each(plan.out_blocks, plan.depth_blocks));
  return plan;
}

}  // namespace fused_rnn::cuda
