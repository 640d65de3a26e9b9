// Draws the levels of a pixel from the output of a network, each image by one warp.

#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/kit/platform.cuh"
#include "distributions/categorical.h"
#include "distributions/logistic_mixture.h"

namespace fused_rnn::cuda {

// The `Math` argument of the distributions.
struct DrawMath {
  static FUSED_RNN_DEVICE double exp(double x) { return ::exp(x); }
  static FUSED_RNN_DEVICE double log(double x) { return ::log(x); }
  static FUSED_RNN_DEVICE double tanh(double x) { return ::tanh(x); }
  static FUSED_RNN_DEVICE double round(double x) { return ::rint(x); }
};

constexpr int kWarpLanes = 32;

// What the lanes of a warp tell one another while they choose.
struct alignas(16) Choosing {
  double largest[kWarpLanes], sums[kWarpLanes];
  int at[kWarpLanes];
  int chosen;
};

// Chooses one of `count` outcomes, as `choose` in csrc/cpu/conv/draw.h does, and returns it in all lanes. Each lane
// adds up the weights of neighbouring outcomes, so the order of summation is another one than there.
template <typename T>
FUSED_RNN_DEVICE int choose(const T* scores, int count, double temperature, double uniform, Choosing& shared) {
  using distributions::Categorical;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes, each = (count + kWarpLanes - 1) / kWarpLanes;
  const int begin = std::min(lane * each, count), end = std::min(begin + each, count);
  int likeliest = -1;  // no outcome
  for (int i = begin; i < end && (likeliest < 0 || scores[likeliest] == scores[likeliest]); ++i)
    if (likeliest < 0 || !(scores[i] <= scores[likeliest])) likeliest = i;  // a NaN is kept
  shared.at[lane] = likeliest;
  shared.largest[lane] = likeliest < 0 ? 0 : static_cast<double>(scores[likeliest]);
  warp_barrier();
  double largest = 0;
  likeliest = -1;
  bool has_nan = false;
  for (int other = 0; other < kWarpLanes; ++other) {
    if (shared.at[other] < 0) continue;
    has_nan |= shared.largest[other] != shared.largest[other];
    if (likeliest < 0 || shared.largest[other] > largest) likeliest = shared.at[other], largest = shared.largest[other];
  }
  warp_barrier();  // all lanes have read what the next choice overwrites
  if (has_nan || std::isinf(largest)) return -1;
  if (temperature == 0) return likeliest;
  const auto weight = [&](int i) {
    return DrawMath::exp(Categorical::log_weight(static_cast<double>(scores[i]), largest, temperature));
  };
  double sum = 0;
  for (int i = begin; i < end; ++i) sum += weight(i);
  shared.sums[lane] = sum;
  shared.chosen = likeliest;
  warp_barrier();
  double before = 0, total = 0;
  for (int other = 0; other < kWarpLanes; ++other) {
    if (other == lane) before = total;
    total += shared.sums[other];
  }
  // Of one lane alone: that among whose outcomes is the chosen one.
  if (!Categorical::is_reached(before, total, uniform) && Categorical::is_reached(before + sum, total, uniform)) {
    int chosen = likeliest;
    for (int i = begin; i < end; ++i) {
      const double more = weight(i);
      before += more;
      if (more > 0) chosen = i;
      if (Categorical::is_reached(before, total, uniform)) break;
    }
    shared.chosen = chosen;
  }
  warp_barrier();
  const int chosen = shared.chosen;
  warp_barrier();
  return chosen;
}

// Draws the levels of one image's pixel, whose output block is `outputs`, of `count` numbers; level_at(channel) is
// where to write the level of a channel, and `channel` the first of the group. All lanes of a warp call this. Returns
// whether the outputs are finite.
template <typename T, typename LevelAt>
FUSED_RNN_DEVICE bool draw_levels(const PixelDraw<T>& d, const T* outputs, int count, int channel,
                                  const double* uniforms, Choosing& shared, const LevelAt& level_at) {
  using distributions::LogisticMixture;
  const bool is_mixture = d.distribution == PixelDistribution::kLogisticMixture;
  const int outcomes = is_mixture ? count / static_cast<int>(LogisticMixture::parameters(d.channels)) : int(d.levels);
  const int chosen = choose(outputs, outcomes, d.temperature, uniforms[0], shared);
  if (threadIdx.x % kWarpLanes != 0) return chosen >= 0;
  if (is_mixture)
    return chosen >= 0 &&
           LogisticMixture::draw<DrawMath>(d, outputs, int64_t(outcomes), int64_t(chosen), uniforms + 1, level_at);
  level_at(channel) = chosen < 0 ? 0 : chosen;
  return chosen >= 0;
}

}  // namespace fused_rnn::cuda
