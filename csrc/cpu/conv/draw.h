// Draws the levels of a pixel from the output of a network. The class of each distribution in fused_rnn/models/ defines
// the result.

#pragma once

#include <cmath>

#include "cpu/conv/pixel_convolution.h"
#include "distributions/categorical.h"
#include "distributions/logistic_mixture.h"

namespace fused_rnn::cpu {
namespace {

using distributions::Categorical;
using distributions::LogisticMixture;

// Calls body(index, e^((score - largest) / temperature)) for each score, in order, until it returns true.
template <typename T, typename Body>
inline void for_each_weight(const T* scores, int64_t count, T largest, double temperature, const Body& body) {
  double block[kLanes<double>];
  for (int64_t first = 0; first < count; first += kLanes<double>) {
    const int64_t lanes = smaller(kLanes<double>, count - first);
    for (int64_t i = 0; i < lanes; ++i) block[i] = Categorical::log_weight(scores[first + i], largest, temperature);
    load(block, lanes).exp().store(block);
    for (int64_t i = 0; i < lanes; ++i)
      if (body(first + i, block[i])) return;
  }
}

// Chooses one of `count` outcomes, whose probabilities are the softmax of scores / temperature: the first one up to
// which the probabilities add up to more than `uniform`. Returns -1 if a score is NaN or the largest one is infinite.
template <typename T>
inline int64_t choose(const T* scores, int64_t count, double temperature, double uniform) {
  int64_t likeliest = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(scores[i])) return -1;
    if (scores[i] > scores[likeliest]) likeliest = i;
  }
  const T largest = scores[likeliest];
  if (std::isinf(largest)) return -1;
  if (temperature == 0) return likeliest;
  double total = 0;
  for_each_weight(scores, count, largest, temperature, [&](int64_t, double weight) { return total += weight, false; });
  double sum = 0;
  int64_t chosen = likeliest;
  for_each_weight(scores, count, largest, temperature, [&](int64_t i, double weight) {
    sum += weight;
    if (!Categorical::is_reached(sum, total, uniform)) return false;
    chosen = i;
    return true;
  });
  return chosen;
}

// The `Math` argument of the distributions.
struct DrawMath {
  static double exp(double x) { return std::exp(x); }
  static double log(double x) { return std::log(x); }
  static double tanh(double x) { return std::tanh(x); }
  static double round(double x) { return std::nearbyint(x); }
};

// Draws all channels of a pixel from a mixture of logistic distributions; level_at(channel) is where to write the
// level. Returns false if the outputs are not finite.
template <typename T, typename LevelAt>
inline bool draw_mixture(const PixelDraw<T>& d, const T* outputs, int64_t count, const double* uniforms,
                         const LevelAt& level_at) {
  const int64_t components = count / LogisticMixture::parameters(d.channels);
  const int64_t component = choose(outputs, components, d.temperature, uniforms[0]);
  return component >= 0 && LogisticMixture::draw<DrawMath>(d, outputs, components, component, uniforms + 1, level_at);
}

// Copies a group of the output's channels at a pixel to the images of outputs.
template <typename T>
void record(const PixelNetworkParams<T>& p, const PixelValue<T>& output, const Pixels& pixels, int64_t group) {
  const Range channels = channels_of(group, p.groups, output.channels);
  const int64_t column = pixels.columns.begin, plane = p.draw.height * p.width;
  for (int64_t image = pixels.images.begin; image < pixels.images.end; ++image)
    for (int64_t channel = channels.begin; channel < channels.end; ++channel)
      p.draw.outputs[(image * output.channels + channel) * plane + pixels.row * p.width + column] =
          output.at(image, pixels.row, column)[channel];
}

// Draws what has been computed at a pixel, for all images: the channel of the given group, or all channels if there is
// only one group. The levels that are drawn or observed become the network's input.
template <typename T>
void draw_pixels(const PixelNetworkParams<T>& p, const Pixels& pixels, int64_t group) {
  const PixelDraw<T>& d = p.draw;
  const PixelValue<T>& output = p.values[p.nodes[p.node_count - 1].output];
  if (d.outputs) record(p, output, pixels, group);
  if (d.distribution == PixelDistribution::kNone) return;
  const int64_t column = pixels.columns.begin;
  const Range block = channels_of(group, p.groups, output.channels);
  const Range channels = channels_of(group, p.groups, d.channels);
  for (int64_t image = pixels.images.begin; image < pixels.images.end; ++image) {
    const int64_t pixel = (image * d.height + pixels.row) * p.width + column;
    const auto level_at = [&](int64_t channel) -> int64_t& {
      return d.image[((image * d.channels + channel) * d.height + pixels.row) * p.width + column];
    };
    if (!d.observed || !d.observed[pixel]) {
      const T* outputs = output.at(image, pixels.row, column) + block.begin;
      const double* uniforms = d.uniforms + (pixel * p.groups + group) * d.numbers;
      bool finite = true;
      if (d.distribution == PixelDistribution::kLogisticMixture) {
        finite = draw_mixture(d, outputs, block.size(), uniforms, level_at);
      } else {
        const int64_t level = choose(outputs, d.levels, d.temperature, uniforms[0]);
        finite = level >= 0;
        level_at(channels.begin) = finite ? level : 0;
      }
      if (!finite) *p.not_finite = 1;
    }
    for (int64_t channel = channels.begin; channel < channels.end; ++channel)
      p.values[0].at(image, pixels.row, column)[channel] = d.scaled[level_at(channel)];
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
