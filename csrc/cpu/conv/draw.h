// Draws the levels of a pixel from the output of a network; fused_rnn/reference/ has the definition.

#pragma once

#include "cpu/conv/pixel_convolution.h"

namespace fused_rnn::cpu {
namespace {

// Draws one of `levels` levels, whose probabilities are the softmax of logits / temperature: the first level up to
// which the sum of probabilities is more than `uniform`. Returns -1 if a logit is NaN.
template <typename T>
inline int64_t draw_level(const T* logits, int64_t levels, double temperature, double uniform) {
  int64_t likeliest = 0;
  for (int64_t level = 0; level < levels; ++level) {
    if (logits[level] != logits[level]) return -1;
    if (logits[level] > logits[likeliest]) likeliest = level;
  }
  if (logits[likeliest] - logits[likeliest] != 0) return -1;
  if (temperature == 0) return likeliest;
  // Multiplying by 1 / temperature would be faster, but it is infinite for the smallest temperatures.
  const auto weights = [&](int64_t first, int64_t count) {
    return ((load(logits + first, count) - Vec<T>(logits[likeliest])) / Vec<T>(static_cast<T>(temperature))).exp();
  };
  const auto for_each_weight = [&](const auto& body) {
    T block[kLanes<T>];
    for (int64_t first = 0; first < levels; first += kLanes<T>) {
      const int64_t count = smaller(kLanes<T>, levels - first);
      weights(first, count).store(block);
      for (int64_t i = 0; i < count; ++i)
        if (body(first + i, static_cast<double>(block[i]))) return;
    }
  };
  double total = 0;
  for_each_weight([&](int64_t, double weight) { return total += weight, false; });
  double sum = 0;
  int64_t drawn = likeliest;
  for_each_weight([&](int64_t level, double weight) {
    sum += weight;
    if (sum <= uniform * total) return false;
    drawn = level;
    return true;
  });
  return drawn;
}

// Draws what has been computed at a pixel, for all images: the channel of the given group, or all channels if there is
// only one group. The levels that are drawn or observed become the network's input.
template <typename T>
void draw_pixels(const PixelNetworkParams<T>& p, const Pixels& pixels, int64_t group) {
  const auto& [images, columns, row] = pixels;
  const int64_t column = columns.begin;
  const PixelDraw<T>& d = p.draw;
  const PixelValue<T>& last = p.values[p.nodes[p.node_count - 1].output];
  if (d.outputs) {
    const int64_t begin = divide_up(group * last.channels, p.groups), plane = d.height * p.width;
    const int64_t end = divide_up((group + 1) * last.channels, p.groups);
    for (int64_t image = images.begin; image < images.end; ++image)
      for (int64_t channel = begin; channel < end; ++channel)
        d.outputs[(image * last.channels + channel) * plane + row * p.width + column] =
            last.at(image, row, column)[channel];
  }
  if (d.distribution == PixelDistribution::kNone) return;
  for (int64_t image = images.begin; image < images.end; ++image) {
    const T* output = last.at(image, row, column);
    const double* uniforms = d.uniforms + ((image * d.height + row) * p.width + column) * d.numbers;
    const Range channels = p.groups > 1 ? Range{group, group + 1} : Range{0, d.channels};
    for (int64_t channel = channels.begin; channel < channels.end; ++channel) {
      const int64_t at = ((image * d.channels + channel) * d.height + row) * p.width + column;
      if (!d.observed || !d.observed[at]) {
        const int64_t level = draw_level(output + channel * d.levels, d.levels, d.temperature, uniforms[channel]);
        if (level < 0) *p.not_finite = 1;
        d.image[at] = level < 0 ? 0 : level;
      }
      p.values[0].at(image, row, column)[channel] = d.scaled[d.image[at]];
    }
  }
}

}  // namespace
}  // namespace fused_rnn::cpu
