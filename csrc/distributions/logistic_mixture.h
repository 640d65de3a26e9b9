// Levels from a mixture of logistic distributions, as the kernels draw them. fused_rnn/models/logistic_mixture.py
// defines the result.

#pragma once

#include "params/pixel_network.h"

namespace fused_rnn::distributions {

struct LogisticMixture {
  static constexpr double kSmallestLogScale = -7.0;

  // Returns how many outputs each component has: its score; the means of all channels, and their log-scales; and a
  // coefficient for each pair of channels.
  static constexpr int64_t parameters(int64_t channels) { return 1 + 2 * channels + channels * (channels - 1) / 2; }

  // Draws all channels of a pixel, given the component; level_at(channel) is where to write the level. The outputs are
  // [parameters(channels), components], and `uniforms` are the random numbers of the channels. Returns false if the
  // outputs are not finite. Math has exp(x), log(x), tanh(x) and round(x), to even numbers at halves, of double.
  template <typename Math, typename T, typename LevelAt>
  static constexpr bool draw(const PixelDraw<T>& d, const T* outputs, int64_t components, int64_t component,
                             const double* uniforms, const LevelAt& level_at) {
    const auto parameter = [&](int64_t i) { return static_cast<double>(outputs[(1 + i) * components + component]); };
    const auto highest = static_cast<double>(d.levels - 1);
    int64_t pair = 2 * d.channels;
    for (int64_t channel = 0; channel < d.channels; ++channel) {
      double value = parameter(channel);
      for (int64_t earlier = 0; earlier < channel; ++earlier)
        value += Math::tanh(parameter(pair++)) * (static_cast<double>(level_at(earlier)) * d.factor + d.offset);
      const double log_scale = parameter(d.channels + channel);
      if (log_scale != log_scale) return false;
      const double scale = Math::exp(log_scale < kSmallestLogScale ? kSmallestLogScale : log_scale);
      if (d.temperature != 0) value += d.temperature * scale * Math::log(uniforms[channel] / (1 - uniforms[channel]));
      const double level = (value - d.offset) / d.factor;
      if (level != level) return false;
      level_at(channel) = static_cast<int64_t>(Math::round(level < 0 ? 0 : level > highest ? highest : level));
    }
    return true;
  }
};

}  // namespace fused_rnn::distributions
