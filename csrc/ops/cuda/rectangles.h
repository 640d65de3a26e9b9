// Masked convolution by torch's own convolutions over rectangles of active taps, for every GPU and dtype.
//
// The rows of taps above the centre are one rectangle, the taps in the centre's row up to the centre another, and with
// several groups of channels the centre tap is one for each group. A masked tap is in none of them, so a NaN that only
// masked taps read reaches no output, which a convolution with a weight that is zero there does not achieve.

#pragma once

#include <vector>

#include "ops/masked_conv2d.h"

namespace fused_rnn::ops {

// Indices from `begin` to before `end`.
struct Indices {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

// Active taps, and the channels for which they are active.
struct TapRectangle {
  Indices rows, columns;  // of the kernel
  Indices out_channels, in_channels;
};

// Returns rectangles that have each active tap once, but for taps that are outside the image for every pixel. Those
// that all channels have come first.
std::vector<TapRectangle> active_rectangles(const MaskedConv2dSizes& sizes);

// Returns the output. `bias` is undefined if there is none.
Tensor rectangles_forward(const MaskedConv2d& layer, const Tensor& bias);

MaskedConv2dGradients rectangles_backward(const MaskedConv2d& layer, const Tensor& grad_output,
                                          MaskedConv2dWanted wanted);

}  // namespace fused_rnn::ops
