// The gradients of a recurrent layer's input and weights: products over all steps, computed after the backward loop has
// written the gradients of the gates' sums.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cells/cells.h"
#include "cpu/kit/activation.h"
#include "cpu/kit/gemm.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/saved_values.h"
#include "cpu/recurrent/schedule.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// Calls body(gate, sum, count) for all gates: for `count` gates from `gate` on whose gradients lie side by side from
// those of `sum` on. These are the cell's runs, or single gates if the gradients of each sum end in an incomplete
// element of `terms` terms, after which there is a gap.
template <typename Cell, typename Body>
inline void for_each_run(int64_t hidden, int64_t terms, const Body& body) {
  constexpr cells::GateRuns kRuns = cells::gate_runs<Cell>();
  for (int i = 0; i < kRuns.count; ++i) {
    const cells::GateRun run = kRuns.run[i];
    const int64_t at_once = hidden % terms == 0 ? run.count : 1;
    for (int64_t j = 0; j < run.count; j += at_once) body(run.gate + j, run.sum + j, at_once);
  }
}

template <typename Cell, typename T, typename Factors>
class RecurrentGradients {
 public:
  using Stored = typename Factors::Stored;
  // grad_projected is [directions, rows, output_size], the gradients of the projected hidden values; it is not read
  // without a projection.
  RecurrentGradients(const RecurrentBackwardParams<T, Stored>& params, const T* grad_projected)
      : p_(params),
        s_(params.sizes),
        rows_(s_.steps.rows()),
        sum_size_(divide_up(s_.hidden_size, Factors::kTerms) * Factors::kTerms),
        width_(Cell::kSums * sum_size_),
        grad_projected_(grad_projected),
        input_parts_(kRounds ? divide_up(rows_, kInputRows) : 1),
        sums_(kRounds ? sums_size() : 0) {}

  void run() {
    for (int64_t part = 0; p_.grad_input && part < input_parts_; ++part) input(share(rows_, part, input_parts_));
    for (int64_t d = 0; p_.weight_grad && d < s_.directions; ++d) {
      weight_ih(d);
      weight_hh(d);
      if constexpr (Cell::kOutputGate >= 0)
        if (p_.grad_weights[d].hr) weight_hr(d);
    }
  }

 private:
  // Whether results are rounded to Stored. What is not yet complete then needs memory in T.
  static constexpr bool kRounds = !std::is_same_v<T, Stored>;
  // How many rows of the input's gradient are computed at a time if they are rounded, at most.
  static constexpr int64_t kInputRows = 4096;

  // How many values the incomplete sums of a weight matrix, or of a part of the input's gradient, take at most.
  int64_t sums_size() const {
    const int64_t of_weight = Cell::kGates * s_.hidden_size * larger(s_.input_size, s_.output_size);
    const int64_t of_input = smaller(rows_, kInputRows) * s_.input_size;
    return larger(p_.weight_grad ? of_weight : 0, p_.grad_input ? of_input : 0);
  }

  // Computes one of the products that are added up to the part of a gradient which begins `offset` values after
  // `first`. The last of them completes it.
  void multiply(Product<T, Factors> product, Stored* first, int64_t offset, bool last) {
    if constexpr (kRounds) {
      product.c = sums_.data() + offset;
      product.rounded = last ? first + offset : nullptr;
    } else {
      product.c = first + offset;
    }
    gemm<T, Factors>(product, s_.threads);
  }

  // The gradients of one sum in all rows; their row stride is width_.
  const Stored* grad_sum(int64_t direction, int64_t sum) const {
    return p_.grad_gates + direction * rows_ * width_ + sum * sum_size_;
  }

  // Returns the transpose of a row-major array with row stride `row`.
  template <typename V>
  static Matrix<V> transposed(const V* data, int64_t row) {
    return {data, 1, row};
  }

  // Calls body(gate, count) for all gates, as for_each_run() does, for the products with the input, whose part of gate
  // g is added to sum g.
  template <typename Body>
  void for_each_input_run(const Body& body) const {
    const int64_t at_once = sum_size_ == s_.hidden_size ? Cell::kGates : 1;
    for (int64_t gate = 0; gate < Cell::kGates; gate += at_once) body(gate, at_once);
  }

  // Computes the gradient of some rows of the input.
  void input(Range rows) {
    for (int64_t d = 0; d < s_.directions; ++d)
      for_each_input_run([&](int64_t gate, int64_t count) {
        multiply({.rows = rows.size(),
                  .columns = s_.input_size,
                  .depth = count * s_.hidden_size,
                  .a = {grad_sum(d, gate) + rows.begin * width_, width_, 1},
                  .b = {p_.weights[d].ih + gate * s_.hidden_size * s_.input_size, s_.input_size, 1},
                  .c_row = s_.input_size,
                  .accumulate = d > 0 || gate > 0},
                 p_.grad_input + rows.begin * s_.input_size, 0, d + 1 == s_.directions && gate + count == Cell::kGates);
      });
  }

  void weight_ih(int64_t direction) {
    const auto& grad = p_.grad_weights[direction];
    for_each_input_run([&](int64_t gate, int64_t count) {
      const int64_t row = gate * s_.hidden_size;
      multiply({.rows = count * s_.hidden_size,
                .columns = s_.input_size,
                .depth = rows_,
                .a = transposed(grad_sum(direction, gate), width_),
                .b = {p_.input, s_.input_size, 1},
                .c_row = s_.input_size,
                .row_sums = grad.bias_ih ? grad.bias_ih + row : nullptr},
               grad.ih, row * s_.input_size, true);
    });
  }

  // Sets grad_weight_hh and grad_bias_hh, or adds to them if `accumulate`, from `rows` rows: the gradients of the sums
  // from row `first` on, transposed, times the previous hidden values at `previous`, whose row stride is `row`. `last`
  // says whether that completes them.
  void add_weight_hh(int64_t direction, int64_t first, int64_t rows, const Stored* previous, int64_t row,
                     bool accumulate, bool last) {
    const auto& grad = p_.grad_weights[direction];
    const int64_t hidden = s_.hidden_size;
    for_each_run<Cell>(hidden, Factors::kTerms, [&](int64_t gate, int64_t sum, int64_t count) {
      multiply({.rows = count * hidden,
                .columns = s_.output_size,
                .depth = rows,
                .a = transposed(grad_sum(direction, sum) + first * width_, width_),
                .b = {previous, row, 1},
                .c_row = s_.output_size,
                .accumulate = accumulate,
                .row_sums = grad.bias_hh ? grad.bias_hh + gate * hidden : nullptr},
               grad.hh, gate * hidden * s_.output_size, last);
    });
  }

  void weight_hh(int64_t direction) {
    const int64_t batch = s_.steps.batch, size = s_.output_size, total = s_.directions * size;
    const Stored* h0 = p_.h0 + direction * batch * size;
    // One step has no previous output; there may be none at all then.
    const Stored* output = s_.steps.time > 1 ? p_.output + direction * size : nullptr;
    if (s_.steps.batch_sizes == nullptr && p_.resets.begins == nullptr) {
      // The previous hidden values are h0 in the direction's first step, and the output of the previous step in every
      // other one.
      const int64_t other_rows = rows_ - batch;
      add_weight_hh(direction, direction == 0 ? 0 : other_rows, batch, h0, size, false, other_rows == 0);
      if (other_rows > 0)
        add_weight_hh(direction, direction == 0 ? batch : 0, other_rows,
                      direction == 0 ? output : output + batch * total, total, true, true);
      return;
    }
    Scratch<Stored> previous(rows_ * size);
    parallel(s_.threads, [&](int64_t thread, int64_t count) {
      const Range mine = share(s_.steps.time, thread, count);
      for (int64_t index = mine.begin; index < mine.end; ++index) {
        const Step step = step_at(s_.steps, direction, index);
        for (int64_t b = 0; b < step.rows; ++b) {
          const Stored* from = b < step.previous_rows ? output + (step.previous_first + b) * total : h0 + b * size;
          if (p_.resets.before(direction, step.first_row + b))
            from = p_.reset_h + p_.resets.state(direction, step.t, b) * size;
          std::memcpy(previous.data() + (step.first_row + b) * size, from, static_cast<size_t>(size) * sizeof(Stored));
        }
      }
    });
    add_weight_hh(direction, 0, rows_, previous.data(), size, false, true);
  }

  // Computes grad_weight_hr: the gradients of the projected hidden values, transposed, times the hidden values before
  // the projection, which are recomputed from the saved output gate and cell states.
  void weight_hr(int64_t direction) {
    const int64_t hidden = s_.hidden_size;
    Scratch<T> unprojected(rows_ * hidden);
    parallel(s_.threads, [&](int64_t thread, int64_t count) {
      const Range mine = share(rows_, thread, count);
      for (int64_t row = mine.begin; row < mine.end; ++row)
        for (int64_t unit = 0; unit < hidden; unit += kLanes<T>) {
          const int64_t units = smaller(hidden - unit, kLanes<T>), from = direction * rows_ + row;
          const Vec<T> gate = load_saved<Cell::bounded(Cell::kOutputGate), T>(
              p_.gates + (from * Cell::kSums + Cell::kOutputGate) * hidden + unit, units);
          const Vec<T> cell = load(p_.cells + from * hidden + unit, units);
          store(unprojected.data() + row * hidden + unit, gate * Activation::tanh(cell), units);
        }
    });
    gemm<T>({.rows = s_.output_size,
             .columns = hidden,
             .depth = rows_,
             .a = transposed(grad_projected_ + direction * rows_ * s_.output_size, s_.output_size),
             .b = {unprojected.data(), hidden, 1},
             .c = p_.grad_weights[direction].hr,
             .c_row = hidden},
            s_.threads);
  }

  const RecurrentBackwardParams<T, Stored>& p_;
  const RecurrentSizes& s_;
  const int64_t rows_;
  const int64_t sum_size_, width_;  // the distances of the gradients of two sums of a row, and of two rows
  const T* grad_projected_;
  const int64_t input_parts_;  // in how many parts the input's gradient is computed
  Scratch<T> sums_;            // incomplete sums, if results are rounded
};

}  // namespace
}  // namespace fused_rnn::cpu
