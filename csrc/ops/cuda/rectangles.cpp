#include "ops/cuda/rectangles.h"

#include <ATen/ops/add.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <c10/core/MemoryFormat.h>
#include <c10/util/strides.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "ops/dtype.h"

namespace fused_rnn::ops {
namespace {

constexpr int64_t kGroups = 1;
constexpr int64_t kStride[] = {1, 1};
constexpr int64_t kNoPadding[] = {0, 0};

// Returns a tensor in the memory format in which torch's convolutions are called. It is channels last wherever cuDNN
// takes that, as it does for every type but float64: only for the other format has cuDNN fast Fourier transforms, which
// mix all pixels, so that a NaN would reach outputs whose taps do not read it.
Tensor dense(const Tensor& tensor) {
  return tensor.contiguous(tensor.scalar_type() == at::kDouble ? at::MemoryFormat::Contiguous
                                                               : at::MemoryFormat::ChannelsLast);
}

// Returns those of `taps` that can meet a pixel of an image of `size` rows or columns.
Indices within_reach(Indices taps, int64_t kernel_size, int64_t dilation, int64_t size) {
  const int64_t centre = kernel_size / 2, reach = (size - 1) / dilation;
  return {std::max(taps.begin, centre - reach), std::min(taps.end, centre + reach + 1)};
}

// Whether cuDNN may compute a rectangle by Winograd's algorithm, which has the same fault: it adds neighbouring pixels.
bool may_mix_pixels(const TapRectangle& taps) {
  return taps.rows.size() == taps.columns.size() && (taps.rows.size() == 3 || taps.rows.size() == 5);
}

// Appends a rectangle, without the taps that are outside the image for every pixel, if any is left.
void append(std::vector<TapRectangle>& rectangles, const MaskedConv2dSizes& s, TapRectangle taps) {
  taps.rows = within_reach(taps.rows, s.kernel_height, s.dilation_height, s.height);
  taps.columns = within_reach(taps.columns, s.kernel_width, s.dilation_width, s.width);
  for (const Indices& indices : {taps.rows, taps.columns, taps.out_channels, taps.in_channels})
    if (indices.size() <= 0) return;
  if (may_mix_pixels(taps)) {
    TapRectangle last_row = taps;
    last_row.rows.begin = --taps.rows.end;
    rectangles.push_back(taps);
    taps = last_row;
  }
  rectangles.push_back(taps);
}

// One dimension of a rectangle: which rows, or columns, of the image its taps read, counted from the output's pixel.
// The first tap reads a pixel at or before it.
struct Reach {
  int64_t first, last;

  Reach(Indices taps, int64_t kernel_size, int64_t dilation)
      : first((taps.begin - kernel_size / 2) * dilation), last((taps.end - 1 - kernel_size / 2) * dilation) {}
  // Whether it is the same on both sides, so that the padding of a convolution, which is so too, fits. Otherwise it
  // ends at the output's pixel or before.
  bool symmetric() const { return first + last == 0; }
};

// A rectangle of taps as one of torch's convolutions.
class Part {
 public:
  Part(const MaskedConv2d& layer, const TapRectangle& taps)
      : layer_(layer),
        taps_(taps),
        rows_(taps.rows, layer.sizes.kernel_height, layer.sizes.dilation_height),
        columns_(taps.columns, layer.sizes.kernel_width, layer.sizes.dilation_width) {}

  bool has_all_out_channels() const { return taps_.out_channels.size() == layer_.sizes.out_channels; }

  // Returns the part's sums, [batch, out_channels of the part, height, width].
  Tensor forward(const Tensor& bias) const {
    const MaskedConv2dSizes& s = layer_.sizes;
    // The padding below and to the right, which is too much, appends rows and columns to those of the output.
    const int64_t padding[] = {-rows_.first, -columns_.first};
    return at::convolution(input(), weight(), bias.defined() ? std::optional(bias) : std::nullopt, kStride, padding,
                           dilation(), /*transposed=*/false, kNoPadding, kGroups)
        .narrow(2, 0, s.height)
        .narrow(3, 0, s.width);
  }

  // Returns the gradient of the part's input channels. It has the first rows and columns of the image, and is zero in
  // the others, which no tap of the part reads.
  Tensor input_gradient(const Tensor& grad_output) const {
    const MaskedConv2dSizes& s = layer_.sizes;
    Tensor gradient = at::convolution(dense(output_channels(grad_output)), weight(), std::nullopt, kStride,
                                      symmetric_padding(), dilation(), /*transposed=*/true, kNoPadding, kGroups);
    const auto inside = [&](const Reach& reach, int64_t dimension, int64_t size) {
      if (!reach.symmetric()) gradient = gradient.narrow(dimension, -reach.first, size + reach.last);
    };
    inside(rows_, 2, s.height);
    inside(columns_, 3, s.width);
    return gradient;
  }

  // Writes the part's entries of the weight gradient.
  void weight_gradient(const Tensor& grad_output, const Tensor& grad_weight) const {
    const auto missing = [](const Reach& reach) {
      return reach.symmetric() ? Indices{0, 0} : Indices{-reach.first, reach.last};
    };
    const Indices above = missing(rows_), left = missing(columns_);
    const int64_t padding[] = {left.begin, left.end, above.begin, above.end};
    const bool pads = std::any_of(std::begin(padding), std::end(padding), [](int64_t count) { return count != 0; });
    const Tensor padded = pads ? at::constant_pad_nd(input(), padding) : input();
    const Tensor gradient = std::get<1>(at::convolution_backward(
        dense(output_channels(grad_output)), padded, weight(), std::nullopt, kStride, symmetric_padding(), dilation(),
        /*transposed=*/false, kNoPadding, kGroups, {false, true, false}));
    of_part(grad_weight).copy_(gradient);
  }

  // Returns those channels of images that the part reads, or adds to.
  Tensor input_channels(const Tensor& images) const { return channels(images, taps_.in_channels); }
  Tensor output_channels(const Tensor& images) const { return channels(images, taps_.out_channels); }

 private:
  static Tensor channels(const Tensor& images, Indices channels) {
    return images.narrow(1, channels.begin, channels.size());
  }

  Tensor of_part(const Tensor& weight) const {
    Tensor part = weight;
    int64_t dimension = 0;
    for (const Indices& indices : {taps_.out_channels, taps_.in_channels, taps_.rows, taps_.columns})
      part = part.narrow(dimension++, indices.begin, indices.size());
    return part;
  }
  Tensor weight() const { return dense(of_part(layer_.weight)); }
  Tensor input() const { return dense(input_channels(layer_.input)); }

  std::array<int64_t, 2> dilation() const { return {layer_.sizes.dilation_height, layer_.sizes.dilation_width}; }
  // The padding in those dimensions in which it is the same on both sides.
  std::array<int64_t, 2> symmetric_padding() const {
    return {rows_.symmetric() ? -rows_.first : 0, columns_.symmetric() ? -columns_.first : 0};
  }

  const MaskedConv2d& layer_;
  const TapRectangle& taps_;
  const Reach rows_, columns_;
};

// Whether a tensor has exactly the strides of a new one in a memory format.
bool is_laid_out(const Tensor& tensor, at::MemoryFormat format) {
  const at::IntArrayRef sizes = tensor.sizes();
  return format == at::MemoryFormat::ChannelsLast ? tensor.strides() == c10::get_channels_last_strides_2d(sizes)
                                                  : tensor.strides() == c10::contiguous_strides(sizes);
}

// A sum over parts, of which each covers some channels, and the first rows and columns, of images. With more than two
// parts, half precision is added in float32, so that it is rounded as rarely as with two.
class Sum {
 public:
  Sum(at::IntArrayRef shape, const at::TensorOptions& options, at::MemoryFormat format, size_t parts)
      : shape_(shape), options_(options.memory_format(format)), type_(c10::typeMetaToScalarType(options.dtype())) {
    if (parts > 2) options_ = options_.dtype(accumulation_type(type_));
  }

  // Adds `part` to those channels that select(images) returns.
  template <typename Select>
  void add(const Tensor& part, const Select& select) {
    const bool covers_all = part.sizes() == shape_;
    if (covers_all && !first_.defined() && !total_.defined()) {
      first_ = part;
    } else if (covers_all && first_.defined() && !is_wide()) {
      total_ = at::empty(shape_, options_);
      at::add_out(total_, std::exchange(first_, Tensor()), part);
    } else {
      select(total()).narrow(2, 0, part.size(2)).narrow(3, 0, part.size(3)).add_(part);
    }
  }

  Tensor result() {
    if (first_.defined() && is_laid_out(first_, *options_.memory_format_opt())) return first_;
    return total().to(type_);
  }

 private:
  bool is_wide() const { return options_.dtype() != type_; }

  // Returns what there is so far, in memory to which parts can be added.
  const Tensor& total() {
    if (first_.defined())
      total_ = at::empty(shape_, options_).copy_(std::exchange(first_, Tensor()));
    else if (!total_.defined())
      total_ = at::empty(shape_, options_).zero_();
    return total_;
  }

  const at::IntArrayRef shape_;
  at::TensorOptions options_;  // of the memory, with the type in which parts are added
  const at::ScalarType type_;  // of the result
  Tensor total_;               // undefined at first
  Tensor first_;               // a part that covers all, as long as it is the only one
};

}  // namespace

std::vector<TapRectangle> active_rectangles(const MaskedConv2dSizes& s) {
  std::vector<TapRectangle> rectangles;
  if (s.batch == 0) return rectangles;
  const Indices all_out = {0, s.out_channels}, all_in = {0, s.in_channels};
  const int64_t rows = s.dense_taps / s.kernel_width, rest = s.dense_taps % s.kernel_width;
  append(rectangles, s, {{0, rows}, {0, s.kernel_width}, all_out, all_in});
  append(rectangles, s, {{rows, rows + 1}, {0, rest}, all_out, all_in});
  const int64_t row = s.kernel_height / 2, column = s.kernel_width / 2, groups = s.data_channels;
  for (int64_t group = 0; s.centre_depends_on_groups() && group < groups; ++group)
    append(rectangles, s,
           {{row, row + 1},
            {column, column + 1},
            {first_of_group(group, groups, s.out_channels), first_of_group(group + 1, groups, s.out_channels)},
            {0, first_of_group(group + s.own_group, groups, s.in_channels)}});
  return rectangles;
}

Tensor rectangles_forward(const MaskedConv2d& given, const Tensor& bias) {
  MaskedConv2d layer = given;
  layer.input = dense(given.input);
  const std::vector<TapRectangle> rectangles = active_rectangles(layer.sizes);
  const auto shape = layer.output_shape();
  Sum sum(shape, layer.input.options(), layer.format, rectangles.size());
  Tensor missing_bias = bias;
  // A part of all channels adds the bias with its sums.
  if (bias.defined() && (rectangles.empty() || !Part(layer, rectangles[0]).has_all_out_channels())) {
    const auto select = [](const Tensor& images) { return images; };
    sum.add(std::exchange(missing_bias, Tensor()).view({1, -1, 1, 1}).expand(shape), select);
  }
  for (const TapRectangle& taps : rectangles) {
    const Part part(layer, taps);
    sum.add(part.forward(std::exchange(missing_bias, Tensor())),
            [&](const Tensor& images) { return part.output_channels(images); });
  }
  return sum.result();
}

MaskedConv2dGradients rectangles_backward(const MaskedConv2d& given, const Tensor& given_grad,
                                          MaskedConv2dWanted wanted) {
  MaskedConv2d layer = given;
  if (wanted.weight) layer.input = dense(given.input);  // nothing else reads its values
  const Tensor grad_output = dense(given_grad);
  const std::vector<TapRectangle> rectangles = active_rectangles(layer.sizes);
  Sum grad_input(layer.input.sizes(), layer.input.options(), layer.format, rectangles.size());
  const at::TensorOptions options = layer.weight.options();
  const Tensor none = at::empty({0}, options);
  const Tensor grad_weight =
      wanted.weight
          ? at::empty(layer.weight.sizes(), options.memory_format(layer.weight.suggest_memory_format())).zero_()
          : none;
  for (const TapRectangle& taps : rectangles) {
    const Part part(layer, taps);
    if (wanted.input)
      grad_input.add(part.input_gradient(grad_output),
                     [&](const Tensor& images) { return part.input_channels(images); });
    if (wanted.weight) part.weight_gradient(grad_output, grad_weight);
  }
  return {wanted.input ? grad_input.result() : none, grad_weight,
          wanted.bias ? grad_output.sum(at::IntArrayRef{0, 2, 3}) : none};
}

}  // namespace fused_rnn::ops
