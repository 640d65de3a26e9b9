// The gradients of masked convolution's weight and bias, which are sums over all pixels.

// clang-format off
// Before the vectors' headers: GCC 12 keeps the tiles of this file in registers only if it has seen these structs first.
// In memory they take three times as long.
#include "params/masked_conv2d.h"
// clang-format on

#include "cpu/conv/images.h"
#include "cpu/conv/taps.h"
#include "cpu/kit/scratch.h"
#include "cpu/masked_conv2d.h"

namespace fused_rnn::cpu {
namespace {

// The sums of the weight gradient while they are computed, packed as [block of out channels][tap, in channel][out
// channel of the block].
template <typename T>
struct WeightSums {
  const MaskedConv2dSizes& sizes;
  Rows<const T> input, grad_output;
  T* sums;

  bool merged() const { return merges_taps(sizes, sizes.in_channels); }
  // The taps that are active for any channel.
  Range taps() const { return {0, sizes.dense_taps + sizes.centre_depends_on_groups()}; }
  int64_t rows() const { return taps().size() * sizes.in_channels; }
  T* block(int64_t first_column) const { return sums + first_column * rows(); }
  int64_t block_width(int64_t first_column) const {
    return packed_width<T>(smaller(kBlock<T>, sizes.out_channels - first_column));
  }
};

// Adds the contributions of the pixel rows `lines` of one image, whose rows are `image`, to the sums of the taps `run`:
// the rows `part` of the block that begins with out channel `first_column`.
template <typename T, int kColumns>
void add_lines(const WeightSums<T>& w, Range image, Range lines, int64_t first_column, const TapRun& run, Range part) {
  const MaskedConv2dSizes& s = w.sizes;
  constexpr int64_t kWidth = kColumns * kLanes<T>;
  const Range pixels = clip(s, run, w.merged());
  if (pixels.size() <= 0) return;
  for_each_tile<kRows<kColumns>>(part.size(), [&](auto rows, int64_t first) {
    const int64_t sum_row = part.begin + first;
    Tile<T, rows(), kColumns> tile;
    tile.zero();
    for (int64_t line = lines.begin; line < lines.end; ++line) {
      if (!image.contains(line + run.row)) continue;
      const T* input = w.input.at(line + run.row, pixels.begin + run.column) + sum_row - run.tap * s.in_channels;
      tile.multiply(input, 1, s.in_channels, w.grad_output.at(line, pixels.begin) + first_column, s.out_channels,
                    pixels.size());
    }
    T* sums = w.block(first_column) + sum_row * kWidth;
    tile.add(sums, kWidth, kWidth);
    tile.store_to(sums, kWidth, kWidth);
  });
}

// Computes one thread's share of the sums, `rows`, counted over the rows of all blocks, one block after the other.
template <typename T>
void sum_over_pixels(const WeightSums<T>& w, Range rows) {
  const MaskedConv2dSizes& s = w.sizes;
  // So many image rows at a time that their gradients stay in the first-level cache.
  constexpr int64_t kValues = 24 * 1024 / sizeof(T);
  const int64_t step = larger(1, kValues / (larger(s.width, 1) * smaller(kBlock<T>, s.out_channels)));
  for_each_strip({0, s.rows()}, s.height, step, [&](Range lines, Range image) {
    for (int64_t column = 0; column < s.out_channels; column += kBlock<T>) {
      const int64_t before = column / kBlock<T> * w.rows();
      for_vectors_of<T>(w.block_width(column), [&](auto vectors) {
        for_each_run(s, w.taps(), w.merged(), [&](const TapRun& run) {
          const int64_t first = run.tap * s.in_channels;
          const Range part = {larger(rows.begin - before, first),
                              smaller(rows.end - before, first + run.taps * s.in_channels)};
          if (part.size() > 0) add_lines<T, vectors()>(w, image, lines, column, run, part);
        });
      });
    }
  });
}

// Writes the weight gradient for one thread's share of the input channels: the sums, and zero for masked weights.
template <typename T>
void unpack(const WeightSums<T>& w, Weights<T> grad_weight, Range channels) {
  const MaskedConv2dSizes& s = w.sizes;
  for (int64_t first = 0; first < s.out_channels; first += kLanes<T>)
    for (int64_t channel = channels.begin; channel < channels.end; ++channel)
      for (int64_t column = first; column < smaller(first + kLanes<T>, s.out_channels); ++column) {
        const int64_t first_column = column / kBlock<T> * kBlock<T>;
        const int64_t width = w.block_width(first_column);
        const T* sums = w.block(first_column) + channel * width + column - first_column;
        T* target = grad_weight.at(column, channel);
        const int64_t group = column * s.data_channels / s.out_channels;
        const bool centre =
            s.centre_depends_on_groups() && channel < group_begin(s, group + s.own_group, s.in_channels);
        for (int64_t tap = 0; tap < s.taps(); ++tap) {
          const bool active = tap < s.dense_taps + centre;
          target[tap * grad_weight.tap_stride] = active ? sums[tap * s.in_channels * width] : T(0);
        }
      }
}

// Sums `count` rows of values for the given columns. The bias gradient is summed over the pixels of each image row
// first and then over the rows, which is more precise than a single long sum and the same for any number of threads.
template <typename T>
void sum_columns(const T* values, int64_t count, int64_t stride, T* sums, Range columns) {
  for (int64_t column = columns.begin; column < columns.end; column += kLanes<T>) {
    const int64_t lanes = smaller(kLanes<T>, columns.end - column);
    Vec<T> sum(T(0));
    for (int64_t i = 0; i < count; ++i) sum = sum + load(values + i * stride + column, lanes);
    store(sums + column, sum, lanes);
  }
}

template <typename T>
void parameter_gradients(const MaskedConv2dParameterGradientsParams<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  const RowLayout input = {s.height, s.width, s.in_channels, merges_taps(s, s.in_channels) ? s.kernel_width / 2 : 0};
  const RowLayout grad = {s.height, s.width, s.out_channels, 0};
  const bool copies_input = p.grad_weight.data && !input.fits(p.input);
  // Tiles read whole vectors, for the last pixel beyond its channels, so the end of the array needs padding.
  const bool copies_grad = !grad.fits(p.grad_output) || s.out_channels % kLanes<T> != 0;
  Scratch<T> input_copy(copies_input ? s.rows() * input.stride() : 0);
  Scratch<T> grad_copy(copies_grad ? s.rows() * grad.stride() + kLanes<T> : 0);
  WeightSums<T> w = {s, copies_input ? input.rows_at(input_copy.data(), 0) : input.rows_at(p.input.data, 0),
                     copies_grad ? grad.rows_at(grad_copy.data(), 0) : grad.rows_at(p.grad_output.data, 0), nullptr};
  const int64_t sums_size = p.grad_weight.data ? w.rows() * packed_width<T>(s.out_channels) : 0;
  Scratch<T> sums(sums_size);
  Scratch<T> row_sums(p.grad_bias ? s.rows() * s.out_channels : 0);
  w.sums = sums.data();
  Barrier barrier;
  parallel(s.threads, [&](int64_t thread, int64_t team) {
    const Range rows = share(s.rows(), thread, team);
    if (copies_input) copy_rows(input, p.input, rows, input.rows_at(input_copy.data(), 0));
    if (copies_grad) copy_rows(grad, p.grad_output, rows, grad.rows_at(grad_copy.data(), 0));
    for (int64_t row = rows.begin; row < rows.end && p.grad_bias; ++row)
      sum_columns(w.grad_output.at(row, 0), s.width, s.out_channels, row_sums.data() + row * s.out_channels,
                  {0, s.out_channels});
    const Range cleared = share(sums_size, thread, team, kLanes<T>);
    if (cleared.size() > 0) std::memset(w.sums + cleared.begin, 0, cleared.size() * sizeof(T));
    barrier.wait(team, thread);
    if (p.grad_bias)
      sum_columns(row_sums.data(), s.rows(), s.out_channels, p.grad_bias,
                  share(s.out_channels, thread, team, kLanes<T>));
    if (!p.grad_weight.data) return;
    sum_over_pixels(w, share(divide_up(s.out_channels, kBlock<T>) * w.rows(), thread, team, kMaxRows));
    barrier.wait(team, thread);
    unpack(w, p.grad_weight, share(s.in_channels, thread, team, kLanes<T>));
  });
}

}  // namespace

namespace CPU_CAPABILITY {

void masked_conv2d_parameter_gradients(const MaskedConv2dParameterGradientsParams<float>& params) {
  parameter_gradients(params);
}
void masked_conv2d_parameter_gradients(const MaskedConv2dParameterGradientsParams<double>& params) {
  parameter_gradients(params);
}

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
