// What is done with the sums of a masked convolution while they are in the cache: activation and residual.

#pragma once

#include "cpu/conv/gate.h"
#include "cpu/conv/images.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cpu {
namespace {

// Rows of images that are computed strip by strip: in place if the images have the kernel's layout, otherwise in memory
// of the thread.
template <typename T>
struct StripTarget {
  RowLayout layout;
  Images<T> images;  // without data if the rows are needed only on the way
  int64_t max_rows;  // the most rows of a strip

  bool in_place() const { return images.data && layout.fits(images); }
  // How many values the memory takes.
  int64_t size() const { return in_place() ? 0 : max_rows * layout.stride(); }
  // Returns the rows of a strip, to be written.
  Rows<T> at(Range rows, T* memory) const {
    return in_place() ? layout.rows_at(images.data, 0) : layout.rows_at(memory, rows.begin);
  }
  // Copies what has been written there to the images; `image` are all rows of the strip's image.
  void finish(Range rows, Range image, const Rows<T>& written) const {
    if (!images.data || in_place()) return;
    transpose(rows.size() * layout.width, layout.channels, written.data, layout.channels,
              images.data + (image.begin * layout.channels + rows.begin - image.begin) * layout.width,
              layout.height * layout.width);
  }
};

// Applies the activation to the sums of some pixels, whose channels are contiguous. For ReLU, out may be sums.
template <typename T>
void activate(MaskedConv2dActivation activation, int64_t groups, int64_t pixels, int64_t channels, const T* sums,
              T* out) {
  if (activation == MaskedConv2dActivation::kReLU) {
    for (int64_t i = 0; i < pixels * channels; i += kLanes<T>) {
      const int64_t lanes = smaller(kLanes<T>, pixels * channels - i);
      store(out + i, Activation::relu(load(sums + i, lanes)), lanes);
    }
  } else if (activation == MaskedConv2dActivation::kGated) {
    const int64_t half = channels / groups / 2;
    for (int64_t i = 0; i < pixels * groups; ++i)
      gate_values(sums + 2 * i * half, sums + (2 * i + 1) * half, out + i * half, half);
  }
}

// Adds the residual to the output's rows `rows`, which have been written; `image` are all rows of their image.
template <typename T>
void add_residual(const RowLayout& layout, Range rows, Range image, Images<T> output, const T* residual) {
  const auto add = [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; i += kLanes<T>) {
      const int64_t lanes = smaller(kLanes<T>, first + count - i);
      store(output.data + i, load(output.data + i, lanes) + load(residual + i, lanes), lanes);
    }
  };
  const int64_t width = layout.width, channels = layout.channels;
  if (output.channels_last) return add(rows.begin * width * channels, rows.size() * width * channels);
  for (int64_t channel = 0; channel < channels; ++channel)
    add((image.begin * channels + channel * layout.height + rows.begin - image.begin) * width, rows.size() * width);
}

}  // namespace
}  // namespace fused_rnn::cpu
