// The arguments of the kernels of masked convolution.
//
// Arrays belong to the caller and live for the duration of the call. What is not said to be written is only read;
// arrays that are written overlap no others. Taps are counted in raster order of the kernel. The first ones are active
// for all channels. With several groups of channels these are the taps before the centre, and the centre depends on the
// groups. No other tap is active.

#pragma once

#include <cstdint>

namespace fused_rnn {

// Returns the first of `channels` channels that is in group `group` of `groups` or a later one.
constexpr int64_t first_of_group(int64_t group, int64_t groups, int64_t channels) {
  return (group * channels + groups - 1) / groups;
}

struct MaskedConv2dSizes {
  int64_t batch, height, width;
  int64_t in_channels, out_channels;
  int64_t kernel_height, kernel_width;  // odd
  int64_t dilation_height, dilation_width;
  int64_t data_channels;  // the number of groups of channels; channel c of C is in group c * data_channels / C
  int64_t dense_taps;     // how many taps are active for all channels; centre() if there are several groups
  bool own_group;         // with several groups: whether the centre tap reads the same group too (type B), or only
                          // earlier groups (type A)
  int64_t threads;        // the most threads that may be used

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t centre() const { return taps() / 2; }
  bool centre_depends_on_groups() const { return data_channels > 1; }
  int64_t rows() const { return batch * height; }
};

// Images, dense in one of the two memory formats.
template <typename T>
struct Images {
  T* data;
  bool channels_last;  // whether data is [batch, height, width, channels], not [batch, channels, height, width]
};

// Weights, or their gradient: [out_channels, in_channels, taps], with any strides.
template <typename T>
struct Weights {
  T* data;
  int64_t out_stride, in_stride, tap_stride;

  T* at(int64_t out, int64_t in) const { return data + out * out_stride + in * in_stride; }
};

// What becomes of the convolution's sums.
enum class MaskedConv2dActivation {
  kNone,
  kReLU,
  kGated  // tanh(a) * sigmoid(b), where a and b are the first and the second half of the channels of each group
};

template <typename T>
struct MaskedConv2dForwardParams {
  MaskedConv2dSizes sizes;
  Images<const T> input;    // of in_channels
  Weights<const T> weight;  // masked entries are not read
  const T* bias;            // [out_channels], or null
  Images<T> output;         // of output_channels(), written: the activation of the sums, plus the residual
  MaskedConv2dActivation activation;
  const T* residual;  // like the output, in its memory format; or null
  Images<T> sums;     // of out_channels, written with the sums before the activation; its data is null if not wanted

  int64_t output_channels() const {
    return activation == MaskedConv2dActivation::kGated ? sizes.out_channels / 2 : sizes.out_channels;
  }
};

template <typename T>
struct MaskedConv2dInputGradientParams {
  MaskedConv2dSizes sizes;
  Images<const T> grad_output;  // of out_channels
  Weights<const T> weight;      // as in the forward pass
  Images<T> grad_input;         // of in_channels, written
};

template <typename T>
struct MaskedConv2dParameterGradientsParams {
  MaskedConv2dSizes sizes;
  Images<const T> grad_output;  // of out_channels
  Images<const T> input;        // of in_channels
  Weights<T> grad_weight;       // written, masked entries with zero; its data is null if not wanted
  T* grad_bias;                 // [out_channels], written; null if not wanted
};

}  // namespace fused_rnn
