// See mma_plan.h. Nothing here is fitted to measurements: no GPU has run these kernels yet.

#include <algorithm>
#include <limits>

#include "cuda/conv/mma_plan.h"

namespace fused_rnn::cuda {
namespace {

// The time of a tile of 64 channels, where one of 128 takes 1. It is more than the share of its products, since it
// copies more for each of them: as many pixels for half of the channels, or all for a quarter.
constexpr double kHalfTile = 0.6, kQuarterTile = 0.4;

// How many rounds of blocks run one after another.
int64_t rounds_of(int64_t blocks, const Device& device) {
  return divide_up(blocks, std::max<int64_t>(1, int64_t(device.multiprocessors) * kMmaBlocksOnEach));
}

// Stages of a unit that a round of blocks takes besides, to start and to store its sums.
constexpr double kStart = 6;

double estimate(const MmaWeightGradientPlan& plan, const Device& device) {
  const double stage = plan.channels == 64 ? kQuarterTile : 1;
  return double(rounds_of(plan.blocks(), device)) * (double(divide_up(plan.stages, plan.splits)) * stage + kStart);
}

}  // namespace

const char* why_no_mma(const MaskedConv2dSizes& sizes, const Device& device, int element_bytes) {
  const bool half = element_bytes == 2;
  const int multiple = 16 / element_bytes;
  if (device.multiprocessors == 0) return "there is no such GPU";
  if (const char* reason = why_no_sizes(sizes)) return reason;
  if (sizes.out_channels % multiple)
    return half ? "the number of output channels is not a multiple of 8"
                : "the number of output channels is not a multiple of 4";
  if (sizes.in_channels % multiple)
    return half ? "the number of input channels is not a multiple of 8"
                : "the number of input channels is not a multiple of 4";
  if (!groups_begin_at_multiples(sizes.out_channels, sizes.data_channels, multiple) ||
      !groups_begin_at_multiples(sizes.in_channels, sizes.data_channels, multiple))
    return half ? "the channels of a group do not begin at a multiple of 8"
                : "the channels of a group do not begin at a multiple of 4";
  return nullptr;
}

MmaCorrelationPlan plan_mma_correlation_with(const MaskedConv2dSizes& sizes, int64_t target_channels, int channels) {
  MmaCorrelationPlan plan = {channels, divide_up(sizes.batch * sizes.height * sizes.width, kMmaPixels), 0};
  for (int64_t group = 0; group < sizes.data_channels; ++group) {
    const GroupChannels of = channels_of_group(target_channels, sizes.data_channels, group);
    plan.channel_tiles += divide_up(of.end - of.begin, channels);
  }
  return plan;
}

MmaCorrelationPlan plan_mma_correlation(const MaskedConv2dSizes& sizes, int64_t target_channels, const Device& device) {
  const MmaCorrelationPlan narrow = plan_mma_correlation_with(sizes, target_channels, 64);
  const MmaCorrelationPlan wide = plan_mma_correlation_with(sizes, target_channels, 128);
  const bool is_narrow_faster =
      double(rounds_of(narrow.blocks(), device)) * kHalfTile < double(rounds_of(wide.blocks(), device));
  return is_narrow_faster ? narrow : wide;
}

MmaWeightGradientPlan plan_mma_weight_gradient_with(const MaskedConv2dSizes& sizes, const Device& device,
                                                    int channels) {
  MmaWeightGradientPlan plan = {};
  plan.channels = channels;
  plan.taps = Taps(sizes, /*with_centre=*/true).count;
  plan.out_tiles = static_cast<int>(divide_up(sizes.out_channels, channels));
  plan.in_tiles = static_cast<int>(divide_up(sizes.in_channels, channels));
  plan.stages = static_cast<int>(divide_up(sizes.batch * sizes.height * sizes.width, kMmaGradientPixels));
  constexpr int kMostRounds = 4, kLeastStages = 4;  // of a block, since adding its slot costs, too
  const int64_t at_once = int64_t(device.multiprocessors) * kMmaBlocksOnEach;
  MmaWeightGradientPlan best = {};
  double best_time = std::numeric_limits<double>::max();
  for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
    const int64_t most = std::max<int64_t>(1, plan.stages / kLeastStages);
    plan.splits = static_cast<int>(std::clamp<int64_t>(rounds * at_once / plan.units(), 1, most));
    const double time = estimate(plan, device);
    if (time >= best_time) continue;
    best = plan;
    best_time = time;
  }
  return best;
}

MmaWeightGradientPlan plan_mma_weight_gradient(const MaskedConv2dSizes& sizes, const Device& device) {
  const MmaWeightGradientPlan small = plan_mma_weight_gradient_with(sizes, device, 64);
  const MmaWeightGradientPlan large = plan_mma_weight_gradient_with(sizes, device, 128);
  return estimate(small, device) < estimate(large, device) ? small : large;
}

}  // namespace fused_rnn::cuda
