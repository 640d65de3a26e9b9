// The arguments of the kernel that evaluates a network of masked convolutions pixel by pixel, in raster order, and
// draws each pixel from the network's output.
//
// Arrays belong to the caller and live for the duration of the call. What is not said to be written is only read;
// arrays that are written overlap no others.

#pragma once

#include <cstdint>

#include "params/masked_conv2d.h"

namespace fused_rnn {

// What the network computes at every pixel: `channels` numbers. The last `rows` rows of pixels are kept, so that row r
// is in place of row r - rows. A value that is the same for all rows, such as a condition, has one row, and one that is
// the same for all pixels has a column stride of 0, too.
template <typename T>
struct PixelValue {
  T* data;  // the first image's first pixel; rows may have pixels of zeros before it and after their last pixel
  int64_t channels, rows;
  int64_t image_stride, row_stride, column_stride;

  T* at(int64_t image, int64_t row, int64_t column) const {
    return data + image * image_stride + row % rows * row_stride + column * column_stride;
  }
};

enum class PixelNodeKind : int64_t { kConvolution, kReLU, kGate, kAdd, kMultiply, kCopy };

// One operation of the network. It reads and writes values, which it names by their positions in a list.
struct PixelNode {
  PixelNodeKind kind;
  bool whole_row;  // whether it depends only on pixels of rows above, so that a whole row of it is computed at once
  int64_t inputs[2];
  int64_t output;
  int64_t from, to, channels;  // of kCopy: which channels of input and output, and how many
  int64_t convolution;         // of kConvolution: its position in a list
};

template <typename T>
struct PixelConvolution {
  MaskedConv2dSizes sizes;  // its batch, height and threads are not used
  Weights<const T> weight;
  const T* bias;   // [out_channels], or null
  int64_t packed;  // the offset of its packed weights
};

// How a pixel's channels are drawn from the network's output: not at all; each from the probabilities of its levels; or
// all of them from a mixture of logistic distributions.
enum class PixelDistribution : int64_t { kNone, kCategorical, kLogisticMixture };

template <typename T>
struct PixelDraw {
  PixelDistribution distribution;
  int64_t channels, height, levels;
  int64_t* image;          // [batch, channels, height, width]: levels from 0 to levels - 1, written where not observed
  const bool* observed;    // [batch, height, width], or null if no pixel is observed
  const double* uniforms;  // [batch, height, width, groups, numbers]: random numbers from 0 to 1, 1 excluded
  int64_t numbers;         // one; of a mixture, one for the component and one for each channel
  const T* scaled;         // [levels]: the network's input for each level
  double factor, offset;   // of a mixture: the value of a level is level * factor + offset
  double temperature;      // not negative; 0 draws the likeliest level
  T* outputs;              // [batch, outputs, height, width]: the network's output, written; or null
};

template <typename T>
struct PixelNetworkParams {
  int64_t batch, width;
  int64_t groups;  // of channels: they are computed and drawn one after the other at every pixel
  int64_t begin,
      end;  // which steps: step (row * width + column) * groups + group computes a group of a pixel's channels
  const PixelNode* nodes;
  int64_t node_count;
  const PixelValue<T>* values;  // value 0 is the network's input, and the output of the last node is its output
  const PixelConvolution<T>* convolutions;
  const T* packed;
  PixelDraw<T> draw;
  int64_t threads;      // the most threads that may be used
  int64_t* not_finite;  // set to 1 if a number from which a pixel is to be drawn is NaN
};

template <typename T>
struct PixelNetworkPackParams {
  int64_t groups;  // as above
  const PixelConvolution<T>* convolutions;
  int64_t convolution_count;
  T* packed;         // written; null if only the size is wanted
  int64_t* offsets;  // [convolution_count], written: where the packed weights of each begin
};

}  // namespace fused_rnn
