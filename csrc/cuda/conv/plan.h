// Which kernels compute a masked convolution on a GPU, and with which tiles: decided from sizes and device alone.

#pragma once

#include <cstdint>

#include "cuda/kit/device_info.h"
#include "cuda/kit/division.h"
#include "cuda/kit/swizzle.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cuda {

constexpr int kChannels = 64;   // of a box of images or weights: 128 bytes of half precision
constexpr int kTileWidth = 8;   // pixels of a tile's row, which is a group of rows of a matrix instruction
constexpr int kMostRows = 32;   // of a tile: 256 pixels are the columns of one instruction
constexpr int kMostTaps = 4;    // neighbouring taps whose weight gradient one instruction computes
constexpr int kMostRuns = 64;   // of such taps
constexpr int kMostGroups = 4;  // of channels, whose centre taps differ

// Active taps: the first ones in raster order. With groups of channels, those that all channels see, or with_centre
// also the centre tap, which some see.
struct Taps {
  int count;       // active taps
  int row_length;  // of the kernel: tap t is at row t / row_length, column t % row_length
  int rows;        // that have active taps
  int dilation_y, dilation_x;
  int before_y, before_x;  // pixels from the place of tap 0 to the pixel that it counts for

  constexpr explicit Taps(const MaskedConv2dSizes& sizes, bool with_centre = false)
      : count(static_cast<int>(sizes.dense_taps) + (with_centre && sizes.centre_depends_on_groups())),
        row_length(static_cast<int>(sizes.kernel_width)),
        rows(count > 0 ? static_cast<int>(divide_up(count, row_length)) : 1),
        dilation_y(static_cast<int>(sizes.dilation_height)),
        dilation_x(static_cast<int>(sizes.dilation_width)),
        before_y(static_cast<int>(sizes.kernel_height / 2 * sizes.dilation_height)),
        before_x(static_cast<int>(sizes.kernel_width / 2 * sizes.dilation_width)) {}

  // The pixels between the first and the last tap of a column, and of a row.
  constexpr int span_y() const { return (rows - 1) * dilation_y; }
  constexpr int span_x() const { return (row_length - 1) * dilation_x; }
};

// The channels of a group: those for which channel * groups / channels is `group`.
struct GroupChannels {
  int64_t begin, end;
};
constexpr GroupChannels channels_of_group(int64_t channels, int64_t groups, int64_t group) {
  return {divide_up(group * channels, groups), divide_up((group + 1) * channels, groups)};
}

// Whether the first channels of all groups are multiples of a number: of 8 for boxes.
constexpr bool groups_begin_at_multiples(int64_t channels, int64_t groups, int64_t of) {
  for (int64_t group = 1; group < groups; ++group)
    if (channels_of_group(channels, groups, group).begin % of != 0) return false;
  return true;
}

// The source channels that the target channels of a group see at the centre tap; none where that does not depend on
// groups. An output sees earlier groups of the input, and so in the gradient an input is seen by later groups of the
// output.
GroupChannels seen_at_centre(const MaskedConv2dSizes& sizes, bool gradient, int64_t group);

// Which input channels an output channel sees at the centre tap, where that depends on their groups.
struct Centre {
  int groups;  // of channels; 1 where all outputs see the same
  int in_channels, out_channels;
  bool own_group;  // whether an output sees the inputs of its own group, too, not only those of earlier ones

  constexpr explicit Centre(const MaskedConv2dSizes& sizes)
      : groups(static_cast<int>(sizes.data_channels)),
        in_channels(static_cast<int>(sizes.in_channels)),
        out_channels(static_cast<int>(sizes.out_channels)),
        own_group(sizes.own_group) {}

  FUSED_RNN_HOST_DEVICE constexpr bool sees(int out, int in) const {
    const int64_t of_in = int64_t(in) * groups / in_channels, of_out = int64_t(out) * groups / out_channels;
    return of_in < of_out || (own_group && of_in == of_out);
  }
};

// Whether kernels are built for tiles of this many rows and groups of 64 channels.
constexpr bool is_built(int rows, int channel_groups) {
  return channel_groups == 1 || (channel_groups == 2 && rows >= 16);
}

// How many blocks of a correlation run on a multiprocessor at once.
constexpr int64_t blocks_on_each(int channel_groups) { return channel_groups == 1 ? 2 : 1; }

// The tiles of output pixels and channels of a correlation: the forward pass or the input gradient.
struct CorrelationPlan {
  int rows;            // of a tile, each of kTileWidth pixels
  int channel_groups;  // of kChannels output channels of a tile, each computed by one warpgroup
  int source_stages, weight_stages;
  int64_t box_bytes;     // of a tile's pixels with all that their taps reach, kChannels deep
  int64_t shared_bytes;  // of a block
  int64_t tiles, blocks;
  double microseconds;  // that it takes, about
};

// The parts of a weight gradient: units of kChannels x channel_groups output channels, kChannels input channels and a
// run of neighbouring taps. The tiles of pixels of each unit are dealt out in turn to some blocks, more of them where
// runs are longer, so that at any time all units read pixels that are close to each other, which are in the L2 cache
// then.
struct WeightGradientPlan {
  int rows;            // of a tile of pixels, each of kTileWidth pixels
  int channel_groups;  // of kChannels output channels of a unit
  int stages;
  int splits[kMostTaps];  // the blocks of a unit, for runs of 1, 2, 3 and 4 taps
  int64_t stage_bytes, shared_bytes;
  int64_t units;
  int tiles, blocks;
  // Values of a slot, in which a block leaves its part of a unit; and of all scratch memory, with a part of the bias
  // gradient for each block.
  constexpr int64_t slot_values() const { return int64_t(channel_groups) * kChannels * kChannels * kMostTaps; }
  constexpr int64_t scratch_values() const { return blocks * (slot_values() + channel_groups * kChannels); }
};

// A layer whose active taps and input channels together are at most so many, less one for the bias gradient, is
// computed with all of them as one depth, for so many pixels at a time.
constexpr int kMostColumns = 128, kFirstPixels = 256, kFirstThreads = 256;
// With fewer channels than this, boxes of 64 would be mostly zeros.
constexpr int kFewChannels = 16;

struct FirstLayerPlan {
  int depth_blocks;  // of 64 columns
  int out_blocks;    // of 64 output channels: in the forward pass those of each group of channels for themselves
  int tiles, blocks;
  int64_t line_bytes;  // of the lines of the images that the taps of a tile reach
  int64_t shared_bytes;
  // The weight gradient: float32 values of a slot, in which a warpgroup leaves its part of the sums, and of all.
  constexpr int64_t slot_values() const { return int64_t(depth_blocks) * out_blocks * kChannels * kChannels; }
  constexpr int64_t scratch_values() const { return 2 * int64_t(blocks) * slot_values(); }
};

// The elements of a line of images with what taps reach beyond its ends.
constexpr int64_t line_elements(const MaskedConv2dSizes& sizes) {
  return (sizes.width + Taps(sizes).span_x()) * sizes.in_channels;
}

// How many blocks of its weight gradient run on a multiprocessor at once: two where registers and shared memory allow.
constexpr int first_blocks_on_each(int out_blocks, int depth_blocks) {
  return out_blocks == 1 && depth_blocks <= 2 ? 2 : 1;
}

// Whether a kernel is built for the weight gradient of such a layer; shared memory has no room for more of its blocks.
constexpr bool is_built_first(int out_blocks, int depth_blocks) {
  return depth_blocks <= 2 && 2 * out_blocks + depth_blocks <= 6;
}

// What computes each pass over a layer: torch's convolutions over rectangles of active taps, the kernels of
// correlation.cuh and weight_gradient.cuh, those of first_layer.cuh, or those of mma_correlation.cuh and
// mma_weight_gradient.cuh.
enum class Kernels { kRectangles, kBoxes, kFirstLayer, kMma };
struct ConvolutionChoice {
  Kernels forward, input_gradient, parameter_gradients;
  const char* reason;  // why not all of them are kBoxes, or kMma: a static text, or null
};
// Values have 2 bytes in half precision, or 4 in float32 whose products may be rounded to tf32.
ConvolutionChoice choose_kernels(const MaskedConv2dSizes& sizes, const Device& device, int element_bytes);

// Why sizes are such that no kernels of our own serve them, whatever the channels are multiples of; null if some may.
const char* why_no_sizes(const MaskedConv2dSizes& sizes);

// The sizes with a multiple of 8 input channels, as boxes need it. With groups of channels, more of them would not be
// the same groups.
MaskedConv2dSizes pad_in_channels(MaskedConv2dSizes sizes);

// The plan with these tiles, without blocks if there is none; and the best of all.
CorrelationPlan plan_correlation_with(const MaskedConv2dSizes& sizes, int64_t target_channels, const Device& device,
                                      int rows, int channel_groups);
CorrelationPlan plan_correlation(const MaskedConv2dSizes& sizes, int64_t target_channels, const Device& device);
WeightGradientPlan plan_weight_gradient_with(const MaskedConv2dSizes& sizes, const Device& device, int channel_groups,
                                             int rows);
WeightGradientPlan plan_weight_gradient(const MaskedConv2dSizes& sizes, const Device& device);

// Without blocks where such a layer is too large for it.
FirstLayerPlan plan_first_layer(const MaskedConv2dSizes& sizes, const Device& device);
FirstLayerPlan plan_first_layer_gradient(const MaskedConv2dSizes& sizes, const Device& device);

// Neighbouring taps of a row of the kernel whose weight gradients one unit computes.
struct Run {
  int first, count;  // taps
};
// Rows of taps are divided into as few runs as possible, of about equal counts. The last row may be shorter.
constexpr int runs_in(int taps) { return (taps + kMostTaps - 1) / kMostTaps; }
constexpr int length_of_row(const Taps& taps, int row) {
  return row < taps.rows - 1 ? taps.row_length : taps.count - row * taps.row_length;
}
constexpr int count_runs(const Taps& taps) {
  return (taps.rows - 1) * runs_in(taps.row_length) + runs_in(length_of_row(taps, taps.rows - 1));
}
constexpr Run run_of_row(const Taps& taps, int row, int which) {
  const int length = length_of_row(taps, row), runs = runs_in(length), first = which * length / runs;
  return {row * taps.row_length + first, (which + 1) * length / runs - first};
}
constexpr Run run_at(const Taps& taps, int index) {
  const int in_row = runs_in(taps.row_length), row = index / in_row < taps.rows - 1 ? index / in_row : taps.rows - 1;
  return run_of_row(taps, row, index - row * in_row);
}
// The time that a tile of pixels takes for a run of taps, about.
constexpr int64_t run_cost(int count) { return 4 * count + 1; }

}  // namespace fused_rnn::cuda
