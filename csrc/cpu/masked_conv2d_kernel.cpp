// The forward pass of masked convolution, and its input gradient, which is the same sum with the taps mirrored and the
// weights transposed.

#include "cpu/conv/images.h"
#include "cpu/conv/taps.h"
#include "cpu/kit/scratch.h"
#include "cpu/masked_conv2d.h"

namespace fused_rnn::cpu {
namespace {

// target[p] = bias + sum over taps of weight[tap] source[p + tap], for all pixels p.
template <typename T>
struct Correlation {
  const MaskedConv2dSizes& sizes;
  bool mirrored;  // whether this is the input gradient, where the last taps are active instead of the first, and
                  // channel groups read later groups instead of earlier ones
  int64_t channels, columns;
  Images<const T> source;
  Images<T> target;
  const T* bias;            // [columns], or null
  Weights<const T> weight;  // [columns, channels, taps]: the columns are the target's channels

  // The active taps that every target channel has for all source channels; with several groups the centre tap is not
  // among them.
  Range dense_taps() const {
    if (mirrored) return {sizes.taps() - sizes.dense_taps, sizes.taps()};
    return {0, sizes.dense_taps};
  }
  // The source channels that a group of target channels reads through the centre tap.
  Range centre_channels(int64_t group) const {
    if (mirrored) return {group_begin(sizes, group + !sizes.own_group, channels), channels};
    return {0, group_begin(sizes, group + sizes.own_group, channels)};
  }
};

// A block of target columns, and the taps and source channels that one pass adds to them.
struct Panel {
  Range columns, taps, channels;
  bool first;      // whether the sums begin with this panel, from the bias
  int64_t packed;  // the offset of its weights, packed as [tap, channel, column]
};

// Calls body(panel) for each panel, in the order of summation, and returns how many values all packed weights take.
template <typename T, typename Body>
int64_t for_each_panel(const Correlation<T>& c, const Body& body) {
  int64_t packed = 0;
  const auto cut = [&](Range columns, Range taps, Range channels, bool first) {
    for (int64_t begin = columns.begin; begin < columns.end; begin += kBlock<T>) {
      const Panel panel = {{begin, smaller(begin + kBlock<T>, columns.end)}, taps, channels, first, packed};
      body(panel);
      packed += taps.size() * channels.size() * packed_width<T>(panel.columns.size());
    }
  };
  cut({0, c.columns}, c.dense_taps(), {0, c.channels}, true);
  const int64_t centre = c.sizes.centre();
  for (int64_t group = 0; c.sizes.centre_depends_on_groups() && group < c.sizes.data_channels; ++group) {
    const Range columns = {group_begin(c.sizes, group, c.columns), group_begin(c.sizes, group + 1, c.columns)};
    const Range channels = c.centre_channels(group);
    if (channels.size() > 0) cut(columns, {centre, centre + 1}, channels, false);
  }
  return packed;
}

// Packs one thread's share of a panel's weights. The loops are ordered so that the cache lines that a vector's columns
// are read from and written to are used completely while they are in the first-level cache.
template <typename T>
void pack(const Correlation<T>& c, const Panel& panel, T* packed, int64_t thread, int64_t team) {
  const int64_t width = packed_width<T>(panel.columns.size());
  const Range channels = share(panel.channels.size(), thread, team, kLanes<T>);
  for (int64_t first = 0; first < width; first += kLanes<T>)
    for (int64_t channel = channels.begin; channel < channels.end; ++channel)
      for (int64_t column = first; column < first + kLanes<T>; ++column) {
        const bool there = column < panel.columns.size();
        const T* weight = c.weight.at(panel.columns.begin + (there ? column : 0), panel.channels.begin + channel);
        T* target = packed + channel * width + column;
        for (int64_t tap = panel.taps.begin; tap < panel.taps.end; ++tap) {
          *target = there ? weight[tap * c.weight.tap_stride] : T(0);
          target += panel.channels.size() * width;
        }
      }
}

// The next three functions add to, load or store a tile as a row-major matrix whose rows have `last` values (kLanes or
// fewer) in the last vector.
template <typename T, int kRows, int kColumns>
FUSED_RNN_INLINE inline void add_tile(Tile<T, kRows, kColumns>& tile, const T* source, int64_t stride, int64_t last) {
  unroll<kRows>([&](auto row) FUSED_RNN_INLINE {
    unroll<kColumns>([&](auto column) FUSED_RNN_INLINE {
      const T* values = source + row * stride + column * kLanes<T>;
      auto& sum = tile.sum[row][column];
      sum = sum + (column + 1 < kColumns ? Vec<T>::loadu(values) : load(values, last));
    });
  });
}
template <typename T, int kRows, int kColumns>
FUSED_RNN_INLINE inline void load_tile(Tile<T, kRows, kColumns>& tile, const T* source, int64_t stride, int64_t last) {
  tile.zero();
  add_tile(tile, source, stride, last);
}
template <typename T, int kRows, int kColumns>
FUSED_RNN_INLINE inline void store_tile(const Tile<T, kRows, kColumns>& tile, T* target, int64_t stride, int64_t last) {
  unroll<kRows>([&](auto row) FUSED_RNN_INLINE {
    unroll<kColumns>([&](auto column) FUSED_RNN_INLINE {
      T* values = target + row * stride + column * kLanes<T>;
      column + 1 < kColumns ? tile.sum[row][column].store(values) : store(values, tile.sum[row][column], last);
    });
  });
}

// Adds a panel's products to the target's row `row`; `image` are the rows of the image that it belongs to.
template <typename T, int kColumns>
void add_row(const Correlation<T>& c, const Panel& panel, const T* weights, Rows<const T> source, Rows<T> target,
             Range image, int64_t row) {
  const MaskedConv2dSizes& s = c.sizes;
  constexpr int64_t kWidth = kColumns * kLanes<T>;
  const int64_t depth = panel.channels.size();
  const int64_t last = panel.columns.size() - (kColumns - 1) * kLanes<T>;
  T* sums = target.at(row, 0) + panel.columns.begin;
  const auto multiply = [&](auto& tile, const TapRun& run, int64_t pixel) FUSED_RNN_INLINE {
    tile.multiply(source.at(row + run.row, pixel + run.column) + panel.channels.begin, source.channels, 1,
                  weights + (run.tap - panel.taps.begin) * depth * kWidth, kWidth, run.taps * depth);
  };
  // The initial values of the sums: the bias of every pixel for the first panel, then the sums so far.
  const T* start = panel.first ? c.bias + panel.columns.begin : sums;
  const int64_t start_stride = panel.first ? 0 : c.columns;
  if (merges_taps(s, c.channels)) {
    // Sums are short, so each tile computes all taps and stays in registers from the bias to the final value.
    for_each_tile<kRows<kColumns>>(s.width, [&](auto rows, int64_t pixel) {
      Tile<T, rows(), kColumns> tile;
      load_tile(tile, start + pixel * start_stride, start_stride, last);
      for_each_run(s, panel.taps, true, [&](const TapRun& run) FUSED_RNN_INLINE {
        if (image.contains(row + run.row)) multiply(tile, run, pixel);
      });
      store_tile(tile, sums + pixel * c.columns, c.columns, last);
    });
    return;
  }
  // Each tap is computed for all its pixels before the next tap, so that its weights stay in the first-level cache.
  if (panel.first)
    for_each_tile<kRows<kColumns>>(s.width, [&](auto rows, int64_t pixel) {
      Tile<T, rows(), kColumns> tile;
      load_tile(tile, start, 0, last);
      store_tile(tile, sums + pixel * c.columns, c.columns, last);
    });
  for_each_run(s, panel.taps, false, [&](const TapRun& run) {
    if (!image.contains(row + run.row)) return;
    const Range pixels = clip(s, run, false);
    for_each_tile<kRows<kColumns>>(pixels.size(), [&](auto rows, int64_t first) {
      T* part = sums + (pixels.begin + first) * c.columns;
      Tile<T, rows(), kColumns> tile;
      tile.zero();
      multiply(tile, run, pixels.begin + first);
      add_tile(tile, part, c.columns, last);  // at the end, since smaller sums have smaller rounding errors
      store_tile(tile, part, c.columns, last);
    });
  });
}

// Computes the target in strips of rows, which are small enough to stay in the cache while the source is copied to, and
// the sums are copied from, the channels-last layout. Sources with channels last are copied, too: a tile reads several
// pixels at once, an access pattern that the hardware prefetcher predicts less well than that of a copy.
template <typename T>
struct Strips {
  const Correlation<T>& c;
  int64_t max_rows;      // the most rows of a strip, all of one image
  int64_t above, below;  // how many rows above and below a strip its taps read
  RowLayout source, target;

  explicit Strips(const Correlation<T>& c) : c(c) {
    const MaskedConv2dSizes& s = c.sizes;
    constexpr int64_t kPixels = 256;
    const int64_t reach = s.kernel_height / 2 * s.dilation_height;
    max_rows = smaller(divide_up(kPixels, s.width), s.height);
    above = c.mirrored ? 0 : reach;
    below = c.mirrored ? reach : 0;
    source = {s.height, s.width, c.channels, merges_taps(s, c.channels) ? s.kernel_width / 2 : 0};
    target = {s.height, s.width, c.columns, 0};
  }

  // How many values the copies of a strip's source and target take.
  int64_t source_size() const { return smaller(max_rows + above + below, source.height) * source.stride(); }
  int64_t target_size() const { return target.fits(c.target) ? 0 : max_rows * target.stride(); }

  // Computes a strip of rows; `image` are all rows of its image, `memory` is for the copies.
  void compute(Range rows, Range image, const T* packed, T* memory) const {
    const Range read = {larger(image.begin, rows.begin - above), smaller(image.end, rows.end + below)};
    const Rows<T> from = source.rows_at(memory, read.begin);
    copy_rows(source, c.source, read, from);
    const bool in_place = target.fits(c.target);
    const Rows<T> to = in_place ? target.rows_at(c.target.data, 0) : target.rows_at(memory + source_size(), rows.begin);
    for_each_panel(c, [&](const Panel& panel) {
      for_vectors_of<T>(panel.columns.size(), [&](auto vectors) {
        for (int64_t row = rows.begin; row < rows.end; ++row)
          add_row<T, vectors()>(c, panel, packed + panel.packed, from, to, image, row);
      });
    });
    if (!in_place)
      transpose(rows.size() * target.width, c.columns, to.data, c.columns,
                c.target.data + (image.begin * c.columns + rows.begin - image.begin) * target.width,
                target.height * target.width);
  }
};

template <typename T>
void correlate(Correlation<T> c) {
  const MaskedConv2dSizes& s = c.sizes;
  Scratch<T> zeros(c.columns);
  std::memset(zeros.data(), 0, c.columns * sizeof(T));
  if (c.bias == nullptr) c.bias = zeros.data();
  const Strips<T> strips(c);
  const int64_t memory_size = strips.source_size() + strips.target_size();
  Scratch<T> packed(for_each_panel(c, [](const Panel&) {}));
  Scratch<T> memory(s.threads * memory_size);
  Barrier barrier;
  parallel(s.threads, [&](int64_t thread, int64_t team) {
    for_each_panel(c, [&](const Panel& panel) { pack(c, panel, packed.data() + panel.packed, thread, team); });
    barrier.wait(team);
    for_each_strip(share(s.rows(), thread, team), s.height, strips.max_rows, [&](Range rows, Range image) {
      strips.compute(rows, image, packed.data(), memory.data() + thread * memory_size);
    });
  });
}

template <typename T>
void forward(const MaskedConv2dForwardParams<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  correlate<T>({s, false, s.in_channels, s.out_channels, p.input, p.output, p.bias, p.weight});
}

template <typename T>
void input_gradient(const MaskedConv2dInputGradientParams<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  const auto& w = p.weight;
  const Weights<const T> mirrored = {w.data + (s.taps() - 1) * w.tap_stride, w.in_stride, w.out_stride, -w.tap_stride};
  correlate<T>({s, true, s.out_channels, s.in_channels, p.grad_output, p.grad_input, nullptr, mirrored});
}

}  // namespace

namespace CPU_CAPABILITY {

void masked_conv2d(const MaskedConv2dForwardParams<float>& params) { forward(params); }
void masked_conv2d(const MaskedConv2dForwardParams<double>& params) { forward(params); }
void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<float>& params) { input_gradient(params); }
void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<double>& params) { input_gradient(params); }

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
