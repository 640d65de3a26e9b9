// The forward pass of masked convolution, and its input gradient, which is the same sum with the taps mirrored and the
// weights transposed.

#include "cpu/conv/correlation.h"
#include "cpu/conv/epilogue.h"
#include "cpu/conv/images.h"
#include "cpu/conv/tap_products.h"
#include "cpu/kit/scratch.h"
#include "cpu/masked_conv2d.h"

namespace fused_rnn::cpu {
namespace {

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

// What becomes of the sums, and where.
template <typename T>
struct Results {
  Images<T> sums;  // without data if they are only needed for the output
  Images<T> output;
  MaskedConv2dActivation activation;
  const T* residual;  // like the output, or null

  // Whether the output is computed where the sums were.
  bool replaces_sums() const { return sums.data == output.data; }
};

// Computes the target in strips of rows, which are small enough to stay in the cache while the source is copied to, and
// the sums are copied from, the channels-last layout. Sources with channels last are copied, too: a tile reads several
// pixels at once, an access pattern that the hardware prefetcher predicts less well than that of a copy.
template <typename T>
struct Strips {
  const Correlation<T>& c;
  Images<const T> images;  // the source
  Results<T> results;
  int64_t max_rows;      // the most rows of a strip, all of one image
  int64_t above, below;  // how many rows above and below a strip its taps read
  RowLayout source;
  StripTarget<T> target, output;  // of the sums, and of their activation
  const bool all_taps;            // whether the dense taps are multiplied together
  const TapProducts<T> tap_products{c};

  Strips(const Correlation<T>& c, Images<const T> images, Results<T> results)
      : c(c), images(images), results(results), all_taps(multiplies_all_taps(c)) {
    const MaskedConv2dSizes& s = c.sizes;
    const int64_t reach = s.kernel_height / 2 * s.dilation_height;
    // The products of the rows that taps reach beyond a strip are computed for the next strip, too.
    constexpr int64_t kPixels = 256, kMorePixels = 1024;
    const int64_t rows = all_taps ? larger(divide_up(kMorePixels, s.width), 4 * reach) : divide_up(kPixels, s.width);
    max_rows = smaller(rows, s.height);
    above = c.mirrored ? 0 : reach;
    below = c.mirrored ? reach : 0;
    source = {s.height, s.width, c.channels, merges_taps(s, c.channels) ? s.kernel_width / 2 : 0};
    target = {{s.height, s.width, c.columns, 0}, results.sums, max_rows};
    const int64_t halves = results.activation == MaskedConv2dActivation::kGated ? 2 : 1;
    output = {{s.height, s.width, c.columns / halves, 0}, results.output, max_rows};
  }

  // How many values the copies of a strip's source, sums and output take.
  int64_t source_size() const { return smaller(max_rows + above + below, source.height) * source.stride(); }
  int64_t sums_size() const { return target.size() + (results.replaces_sums() ? 0 : output.size()); }
  int64_t size() const { return source_size() + sums_size() + (all_taps ? tap_products.row_size() : 0); }

  // How many values the packed weights take, those of the dense taps first, and their packing by one thread of a team.
  int64_t packed_size() const {
    return for_each_panel(c, [](const Panel&) {}) + (all_taps ? tap_products.weights_size() : 0);
  }
  void pack_weights(T* packed, int64_t thread, int64_t team) const {
    if (all_taps) tap_products.pack(packed, thread, team);
    for_each_other_panel(packed, [&](const Panel& panel, T* weights) { pack(c, panel, weights, thread, team); });
  }
  // Calls body(panel, its packed weights) for what is not multiplied together.
  template <typename P, typename Body>
  void for_each_other_panel(P* packed, const Body& body) const {
    P* const others = packed + (all_taps ? tap_products.weights_size() : 0);
    for_each_panel(c, [&](const Panel& panel) {
      if (!all_taps || !panel.first) body(panel, others + panel.packed);
    });
  }

  // Computes a strip of rows; `image` are all rows of its image, `memory` is for the copies.
  void compute(Range rows, Range image, const T* packed, T* memory) const {
    const Range read = {larger(image.begin, rows.begin - above), smaller(image.end, rows.end + below)};
    const Rows<T> from = source.rows_at(memory, read.begin);
    copy_rows(source, images, read, from);
    const Rows<T> to = target.at(rows, memory + source_size());
    if (all_taps) tap_products.add_rows(packed, from, to, rows, image, memory + source_size() + sums_size());
    for_each_other_panel(packed, [&](const Panel& panel, const T* weights) {
      for_vectors_of<T>(panel.columns.size(), [&](auto vectors) {
        for (int64_t row = rows.begin; row < rows.end; ++row)
          add_row<T, vectors()>(c, panel, weights, from, to, image, row);
      });
    });
    finish(rows, image, to, memory + source_size() + target.size());
  }

  // Writes the output of a strip, whose sums have been computed.
  void finish(Range rows, Range image, const Rows<T>& sums, T* memory) const {
    const Rows<T> to = results.replaces_sums() ? sums : output.at(rows, memory);
    activate(results.activation, c.sizes.data_channels, rows.size() * c.sizes.width, c.columns, sums.at(rows.begin, 0),
             to.at(rows.begin, 0));
    if (!results.replaces_sums()) target.finish(rows, image, sums);
    output.finish(rows, image, to);
    if (results.residual) add_residual(output.layout, rows, image, results.output, results.residual);
  }
};

template <typename T>
void correlate(Correlation<T> c, Images<const T> source, Results<T> results) {
  const MaskedConv2dSizes& s = c.sizes;
  Scratch<T> zeros(c.columns);
  std::memset(zeros.data(), 0, c.columns * sizeof(T));
  if (c.bias == nullptr) c.bias = zeros.data();
  const Strips<T> strips(c, source, results);
  const int64_t memory_size = strips.size();
  Scratch<T> packed(strips.packed_size());
  Scratch<T> memory(s.threads * memory_size);
  Barrier barrier;
  parallel(s.threads, [&](int64_t thread, int64_t team) {
    strips.pack_weights(packed.data(), thread, team);
    barrier.wait(team, thread);
    for_each_strip(share(s.rows(), thread, team), s.height, strips.max_rows, [&](Range rows, Range image) {
      strips.compute(rows, image, packed.data(), memory.data() + thread * memory_size);
    });
  });
}

template <typename T>
void forward(const MaskedConv2dForwardParams<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  // Unless the sums are wanted too, or are more than the output, the output is computed in their place.
  const bool in_place = p.sums.data == nullptr && p.activation != MaskedConv2dActivation::kGated;
  correlate<T>({s, false, s.in_channels, s.out_channels, p.bias, p.weight}, p.input,
               {in_place ? p.output : p.sums, p.output, p.activation, p.residual});
}

template <typename T>
void input_gradient(const MaskedConv2dInputGradientParams<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  const auto& w = p.weight;
  const Weights<const T> mirrored = {w.data + (s.taps() - 1) * w.tap_stride, w.in_stride, w.out_stride, -w.tap_stride};
  correlate<T>({s, true, s.out_channels, s.in_channels, nullptr, mirrored}, p.grad_output,
               {p.grad_input, p.grad_input, MaskedConv2dActivation::kNone, nullptr});
}

}  // namespace

namespace CPU_CAPABILITY {

void masked_conv2d(const MaskedConv2dForwardParams<float>& params) { forward(params); }
void masked_conv2d(const MaskedConv2dForwardParams<double>& params) { forward(params); }
void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<float>& params) { input_gradient(params); }
void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<double>& params) { input_gradient(params); }

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
