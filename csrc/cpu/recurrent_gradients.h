// The gradients of a recurrent layer's input and weights: products over all steps, once the gradients of the gates'
// sums are known.

#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "cpu/recurrent.h"
#include "cpu/scratch.h"
#include "cpu/tile.h"
#include "params/recurrent.h"

namespace fused_rnn::cpu {
namespace {

template <typename Cell, typename T>
class RecurrentGradients {
 public:
  // grad_projected: [directions, rows, output_size], gradients of the projected hidden values; null without a
  // projection.
  RecurrentGradients(const RecurrentBackward<T>& params, const T* grad_projected)
      : p_(params),
        s_(params.sizes),
        rows_(s_.steps.rows()),
        width_(4 * s_.hidden_size),
        grad_projected_(grad_projected) {}

  void run() {
    for (int64_t d = 0; d < s_.directions; ++d) {
      if (p_.grad_input) input(d);
      if (!p_.weight_grad) continue;
      const auto& grad = p_.grad_weights[d];
      gemm<T>(Cell::kGates * s_.hidden_size, s_.input_size, rows_, transposed(grad_gates(d), width_),
              {p_.input, s_.input_size, 1}, grad.ih, s_.input_size, false, s_.threads);
      weight_hh(d);
      if (grad.bias_ih) biases(d);
      if constexpr (!Cell::kCarriesHidden)
        if (grad.hr) weight_hr(d);
    }
  }

 private:
  const T* grad_gates(int64_t direction) const { return p_.grad_gates + direction * rows_ * width_; }

  // A row-major array [rows, row] read as its transpose.
  static Matrix<T> transposed(const T* data, int64_t row) { return {data, 1, row}; }

  void input(int64_t direction) {
    gemm<T>(rows_, s_.input_size, Cell::kGates * s_.hidden_size, {grad_gates(direction), width_, 1},
            {p_.weights[direction].ih, s_.input_size, 1}, p_.grad_input, s_.input_size, direction > 0, s_.threads);
  }

  // grad_hh (+)= gradients of the sums of `rows` rows from `first` on, times the hidden values before them.
  void add_weight_hh(int64_t direction, int64_t first, int64_t rows, const T* previous, int64_t row, bool accumulate) {
    T* target = p_.grad_weights[direction].hh;
    for (const auto part : Cell::kHiddenParts) {
      gemm<T>(part.count * s_.hidden_size, s_.output_size, rows,
              transposed(grad_gates(direction) + first * width_ + part.first * s_.hidden_size, width_),
              {previous, row, 1}, target, s_.output_size, accumulate, s_.threads);
      target += part.count * s_.hidden_size * s_.output_size;
    }
  }

  void weight_hh(int64_t direction) {
    const int64_t batch = s_.steps.batch, size = s_.output_size, total = s_.directions * size;
    const T* h0 = p_.h0 + direction * batch * size;
    const T* output = p_.output + direction * size;
    if (s_.steps.batch_sizes == nullptr) {
      // The hidden values before a step are the output of all rows but one step, and h0.
      const int64_t others = rows_ - batch;
      add_weight_hh(direction, direction == 0 ? 0 : others, batch, h0, size, false);
      if (others > 0)
        add_weight_hh(direction, direction == 0 ? batch : 0, others, direction == 0 ? output : output + batch * total,
                      total, true);
      return;
    }
    Scratch<T> previous(rows_ * size);
    parallel(s_.threads, [&](int64_t thread, int64_t count) {
      const Range mine = share(s_.steps.time, thread, count);
      for (int64_t index = mine.begin; index < mine.end; ++index) {
        const Step step = step_at(s_.steps, direction, index);
        for (int64_t b = 0; b < step.rows; ++b)
          std::memcpy(previous.data() + (step.first_row + b) * size,
                      b < step.previous_rows ? output + (step.previous_first + b) * total : h0 + b * size,
                      static_cast<size_t>(size) * sizeof(T));
      }
    });
    add_weight_hh(direction, 0, rows_, previous.data(), size, false);
  }

  // Sums over all rows, in blocks as gemm() does; what the two biases have in common is computed once.
  void biases(int64_t direction) {
    const auto& grad = p_.grad_weights[direction];
    const int64_t hidden = s_.hidden_size;
    Scratch<T> sums(width_);
    parallel(s_.threads, [&](int64_t thread, int64_t count) {
      const Range mine = share(width_, thread, count, 4 * kLanes<T>);
      for (int64_t first = mine.begin; first < mine.end; first += 4 * kLanes<T>) {
        const int64_t columns = mine.end - first < 4 * kLanes<T> ? mine.end - first : 4 * kLanes<T>;
        Tile<T, 1, 4> sum;
        sum.zero();
        for (int64_t block = 0; block < rows_; block += kBlockDepth) {
          Tile<T, 1, 4> part;
          part.zero();
          for (int64_t row = block; row < rows_ && row < block + kBlockDepth; ++row)
            part.add(grad_gates(direction) + row * width_ + first, 0, columns);
          unroll<4>([&](auto column)
                        FUSED_RNN_INLINE { sum.sum[0][column] = sum.sum[0][column] + part.sum[0][column]; });
        }
        sum.store_to(sums.data() + first, 0, columns);
      }
    });
    const auto bytes = static_cast<size_t>(hidden) * sizeof(T);
    std::memcpy(grad.bias_ih, sums.data(), Cell::kGates * bytes);
    T* target = grad.bias_hh;
    for (const auto part : Cell::kHiddenParts) {
      std::memcpy(target, sums.data() + part.first * hidden, static_cast<size_t>(part.count) * bytes);
      target += part.count * hidden;
    }
  }

  // grad_hr = gradients of the projected hidden values, transposed, times the hidden values before the projection.
  void weight_hr(int64_t direction) {
    const int64_t hidden = s_.hidden_size;
    Scratch<T> unprojected(rows_ * hidden);
    parallel(s_.threads, [&](int64_t thread, int64_t count) {
      const Range mine = share(rows_, thread, count);
      for (int64_t row = mine.begin; row < mine.end; ++row)
        for (int64_t unit = 0; unit < hidden; unit += kLanes<T>) {
          const int64_t units = hidden - unit < kLanes<T> ? hidden - unit : kLanes<T>, from = direction * rows_ + row;
          store(unprojected.data() + row * hidden + unit,
                Cell::hidden(load(p_.gates + from * width_ + 3 * hidden + unit, units),
                             load(p_.cells + from * hidden + unit, units)),
                units);
        }
    });
    gemm<T>(s_.output_size, hidden, rows_,
            transposed(grad_projected_ + direction * rows_ * s_.output_size, s_.output_size),
            {unprojected.data(), hidden, 1}, p_.grad_weights[direction].hr, hidden, false, s_.threads);
  }

  const RecurrentBackward<T>& p_;
  const RecurrentSizes& s_;
  const int64_t rows_, width_;
  const T* grad_projected_;
};

}  // namespace
}  // namespace fused_rnn::cpu
