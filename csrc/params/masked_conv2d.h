// What the kernels of masked convolution are given.
// All arrays are dense and live for the length of the call. Images are channels-last: [batch, height, width, channels].
// Taps are counted in raster order of the kernel; those before the centre are active, those after it never are.

#pragma once

#include <cstdint>

namespace fused_rnn {

struct MaskedConv2dSizes {
  int64_t batch, height, width;
  int64_t in_channels, out_channels;
  int64_t kernel_height, kernel_width;  // odd
  int64_t dilation_height, dilation_width;
  int64_t data_channels;  // groups of channels; channel c of C is in group c * data_channels / C
  bool own_group;         // whether the centre tap reads the pixel's own group (type B) or earlier ones only (type A)
  int64_t threads;

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t centre() const { return taps() / 2; }
  int64_t pixels() const { return batch * height * width; }
};

template <typename T>
struct MaskedConv2dForward {
  MaskedConv2dSizes sizes;
  const T* input;   // [batch, height, width, in_channels]
  const T* weight;  // [out_channels, in_channels, kernel_height, kernel_width]; masked entries are not used
  const T* bias;    // [out_channels], or null
  T* output;        // [batch, height, width, out_channels], written
};

template <typename T>
struct MaskedConv2dInputGradient {
  MaskedConv2dSizes sizes;
  const T* grad_output;  // [batch, height, width, out_channels]
  const T* weight;       // as forward's
  T* grad_input;         // [batch, height, width, in_channels], written
};

template <typename T>
struct MaskedConv2dWeightGradient {
  MaskedConv2dSizes sizes;
  const T* grad_output;  // [batch, height, width, out_channels]
  const T* input;        // [batch, height, width, in_channels]
  T* grad_weight;        // [out_channels, in_channels, kernel_height, kernel_width], written; masked entries are zero
};

template <typename T>
struct MaskedConv2dBiasGradient {
  MaskedConv2dSizes sizes;
  const T* grad_output;  // [batch, height, width, out_channels]
  T* grad_bias;          // [out_channels], written
};

}  // namespace fused_rnn
