// The gradients of masked convolution's weight and bias: sums over all pixels.

#include "cpu/masked_conv2d.h"
#include "cpu/masked_conv2d_taps.h"
#include "cpu/scratch.h"

namespace fused_rnn::cpu {
namespace {

// The weight gradient is computed as [block of out channels][tap, in channel][out channel of the block], `sums`.
template <typename T>
struct WeightSums {
  const MaskedConv2dSizes& sizes;
  Source<T> input;
  const T* grad_output;
  int64_t grad_stride;  // from pixel to pixel
  T* sums;

  // Every tap that any channel sees.
  Range taps() const { return {0, sizes.centre() + (sizes.own_group || sizes.data_channels > 1)}; }
  int64_t rows() const { return taps().size() * sizes.in_channels; }
  T* block(int64_t first_column) const { return sums + first_column * rows(); }
  int64_t block_width(int64_t first_column) const {
    return packed_width<T>(smaller(kBlock<T>, sizes.out_channels - first_column));
  }
};

// Adds the image rows `lines` of one image to the rows `part` of a block's sums that belong to `run`.
template <typename T, int kColumns>
void add_lines(const WeightSums<T>& w, int64_t image, Range lines, int64_t first_column, const Run& run, Range part) {
  const MaskedConv2dSizes& s = w.sizes;
  constexpr int64_t kWidth = kColumns * kLanes<T>;
  const Range pixels = clip(s, run, w.input.merged);
  if (pixels.size() <= 0) return;
  for_each_tile<kMaxRows>(part.size(), [&](auto rows, int64_t first) {
    const int64_t sum_row = part.begin + first;
    Tile<T, rows(), kColumns> tile;
    tile.zero();
    for (int64_t line = lines.begin; line < lines.end; ++line) {
      if (!inside(s, run, line)) continue;
      const T* input = w.input.at(s, image, line + run.row, pixels.begin + run.column);
      const int64_t pixel = (image * s.height + line) * s.width + pixels.begin;
      tile.multiply_all(input + sum_row - run.tap * s.in_channels, 1, s.in_channels,
                        w.grad_output + pixel * w.grad_stride + first_column, w.grad_stride, pixels.size());
    }
    T* sums = w.block(first_column) + sum_row * kWidth;
    tile.add(sums, kWidth, kWidth);
    tile.store_to(sums, kWidth, kWidth);
  });
}

// Computes one thread's share of the sums: `rows` of all blocks' rows, one block after the other.
template <typename T>
void sum_over_pixels(const WeightSums<T>& w, Range rows) {
  const MaskedConv2dSizes& s = w.sizes;
  // As many image rows at a time as leave their gradients in the first-level cache.
  constexpr int64_t kValues = 24 * 1024 / sizeof(T);
  const int64_t step = larger(1, kValues / (larger(s.width, 1) * smaller(kBlock<T>, s.out_channels)));
  for (int64_t image = 0; image < s.batch; ++image)
    for (int64_t line = 0; line < s.height; line += step) {
      const Range lines = {line, smaller(line + step, s.height)};
      for (int64_t column = 0; column < s.out_channels; column += kBlock<T>) {
        const int64_t before = column / kBlock<T> * w.rows();
        for_vectors_of<T>(w.block_width(column), [&](auto vectors) {
          for_each_run(s, w.taps(), w.input.merged, [&](const Run& run) {
            const int64_t first = run.tap * s.in_channels;
            const Range part = {larger(rows.begin - before, first),
                                smaller(rows.end - before, first + run.taps * s.in_channels)};
            if (part.size() > 0) add_lines<T, vectors()>(w, image, lines, column, run, part);
          });
        });
      }
    }
}

// Writes one thread's share of the weight's gradient: the sums where the mask is one, zero elsewhere.
template <typename T>
void unpack(const WeightSums<T>& w, T* grad_weight, Range channels) {
  const MaskedConv2dSizes& s = w.sizes;
  for (int64_t channel = channels.begin; channel < channels.end; ++channel)
    for (int64_t column = 0; column < s.out_channels; ++column) {
      const int64_t first_column = column / kBlock<T> * kBlock<T>;
      const int64_t width = w.block_width(first_column);
      const T* sums = w.block(first_column) + channel * width + column - first_column;
      T* target = grad_weight + (column * s.in_channels + channel) * s.taps();
      const int64_t group = column * s.data_channels / s.out_channels;
      const bool centre = channel < group_begin(s, group + s.own_group, s.in_channels);
      for (int64_t tap = 0; tap < s.taps(); ++tap) {
        const bool active = tap < s.centre() || (tap == s.centre() && centre);
        target[tap] = active ? sums[tap * s.in_channels * width] : T(0);
      }
    }
}

template <typename T>
void weight_gradient(const MaskedConv2dWeightGradient<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  Scratch<T> margins(margins_size(s, s.in_channels));
  // Tiles read whole vectors, at the very end beyond the last pixel's channels.
  const int64_t size = s.pixels() * s.out_channels;
  Scratch<T> longer(s.out_channels % kLanes<T> ? size + kLanes<T> : 0);
  WeightSums<T> w = {s, make_source(s, s.in_channels, p.input, margins.data()),
                     longer.data() ? longer.data() : p.grad_output, s.out_channels, nullptr};
  const int64_t sums_size = w.rows() * packed_width<T>(s.out_channels);
  Scratch<T> sums(sums_size);
  w.sums = sums.data();
  Barrier barrier;
  parallel(s.threads, [&](int64_t thread, int64_t team) {
    if (w.input.merged)
      copy_with_margins(s, s.in_channels, p.input, margins.data(), share(s.batch * s.height, thread, team));
    if (longer.data()) {
      const Range part = share(size, thread, team);
      std::memcpy(longer.data() + part.begin, p.grad_output + part.begin, part.size() * sizeof(T));
    }
    const Range cleared = share(sums_size, thread, team, kLanes<T>);
    std::memset(w.sums + cleared.begin, 0, cleared.size() * sizeof(T));
    barrier.wait(team);
    sum_over_pixels(w, share(divide_up(s.out_channels, kBlock<T>) * w.rows(), thread, team, kMaxRows));
    barrier.wait(team);
    unpack(w, p.grad_weight, share(s.in_channels, thread, team));
  });
}

// Sums over the pixels of each image row first, then over the rows: precise, and the same for any number of threads.
template <typename T>
void bias_gradient(const MaskedConv2dBiasGradient<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  const int64_t rows = s.batch * s.height;
  const auto sum = [&](const T* values, int64_t count, T* result, Range columns) {
    for (int64_t column = columns.begin; column < columns.end; column += kLanes<T>) {
      const int64_t lanes = smaller(kLanes<T>, columns.end - column);
      Vec<T> total(T(0));
      for (int64_t i = 0; i < count; ++i) total = total + load(values + i * s.out_channels + column, lanes);
      store(result + column, total, lanes);
    }
  };
  Scratch<T> row_sums(rows * s.out_channels);
  Barrier barrier;
  parallel(s.threads, [&](int64_t thread, int64_t team) {
    const Range part = share(rows, thread, team);
    for (int64_t row = part.begin; row < part.end; ++row)
      sum(p.grad_output + row * s.width * s.out_channels, s.width, row_sums.data() + row * s.out_channels,
          {0, s.out_channels});
    barrier.wait(team);
    sum(row_sums.data(), rows, p.grad_bias, share(s.out_channels, thread, team, kLanes<T>));
  });
}

}  // namespace

namespace CPU_CAPABILITY {

void masked_conv2d_weight_gradient(const MaskedConv2dWeightGradient<float>& params) { weight_gradient(params); }
void masked_conv2d_weight_gradient(const MaskedConv2dWeightGradient<double>& params) { weight_gradient(params); }
void masked_conv2d_bias_gradient(const MaskedConv2dBiasGradient<float>& params) { bias_gradient(params); }
void masked_conv2d_bias_gradient(const MaskedConv2dBiasGradient<double>& params) { bias_gradient(params); }

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
