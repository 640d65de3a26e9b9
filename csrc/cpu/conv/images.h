// The memory layout of images in the kernels of masked convolution: rows of pixels with the channels last.

#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cpu {
namespace {

// Rows of images with the channels last, counted over all images.
template <typename T>
struct Rows {
  T* data;  // the first pixel of row `first`
  int64_t first;
  int64_t channels, stride;  // distances from pixel to pixel and from row to row

  T* at(int64_t row, int64_t column) const { return data + (row - first) * stride + column * channels; }
  operator Rows<const T>() const { return {data, first, channels, stride}; }
};

// The layout of the rows that a kernel reads or writes: channels last, `margin` pixels of zeros at both ends.
struct RowLayout {
  int64_t height, width, channels, margin;

  int64_t stride() const { return (width + 2 * margin) * channels; }
  // Whether images have that layout, so that the kernel can use them in place.
  template <typename T>
  bool fits(const Images<T>& images) const {
    return images.channels_last && margin == 0;
  }
  // Returns the rows that lie in `memory`, the first of which is row `first`.
  template <typename T>
  Rows<T> rows_at(T* memory, int64_t first) const {
    return {memory + margin * channels, first, channels, stride()};
  }
};

// to[column * to_stride + row] = from[row * from_stride + column].
template <typename T>
inline void transpose(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int64_t kSide = kLanes<T>;
  const auto one_by_one = [&](Range part_rows, Range part_columns) {
    for (int64_t column = part_columns.begin; column < part_columns.end; ++column)
      for (int64_t row = part_rows.begin; row < part_rows.end; ++row)
        to[column * to_stride + row] = from[row * from_stride + column];
  };
  const int64_t whole_rows = rows / kSide * kSide, whole_columns = columns / kSide * kSide;
  for (int64_t column = 0; column < whole_columns; column += kSide)
    for (int64_t row = 0; row < whole_rows; row += kSide)
      at::vec::transpose_mxn<T, kSide, kSide>(from + row * from_stride + column, from_stride,
                                              to + column * to_stride + row, to_stride);
  one_by_one({whole_rows, rows}, {0, whole_columns});
  one_by_one({0, rows}, {whole_columns, columns});
}

// Cuts `rows` into strips of at most `most` rows of a single image, and calls body(strip, all rows of its image) for
// each.
template <typename Body>
inline void for_each_strip(Range rows, int64_t height, int64_t most, const Body& body) {
  for (int64_t begin = rows.begin; begin < rows.end;) {
    const int64_t top = begin / height * height;
    const int64_t end = smaller(smaller(begin + most, top + height), rows.end);
    body(Range{begin, end}, Range{top, top + height});
    begin = end;
  }
}

// Copies `rows` of the images to `target`, which has the given layout.
template <typename T>
inline void copy_rows(const RowLayout& layout, Images<const T> images, Range rows, Rows<T> target) {
  const int64_t size = layout.width * layout.channels;
  for (int64_t row = rows.begin; row < rows.end && layout.margin > 0; ++row) {
    std::memset(target.at(row, -layout.margin), 0, layout.margin * layout.channels * sizeof(T));
    std::memset(target.at(row, layout.width), 0, layout.margin * layout.channels * sizeof(T));
  }
  // Without margins the rows of an image are contiguous and can be copied together.
  for_each_strip(rows, layout.height, layout.margin > 0 ? 1 : layout.height, [&](Range part, Range image) {
    if (images.channels_last)
      std::memcpy(target.at(part.begin, 0), images.data + part.begin * size, part.size() * size * sizeof(T));
    else
      transpose(layout.channels, part.size() * layout.width,
                images.data + image.begin * size + (part.begin - image.begin) * layout.width,
                layout.height * layout.width, target.at(part.begin, 0), layout.channels);
  });
}

}  // namespace
}  // namespace fused_rnn::cpu
