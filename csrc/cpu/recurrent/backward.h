// The backward loop over the steps of a recurrent layer, from the last to the first. Each step computes, in one
// pass, the gradients of its gates' sums from the gradient of its hidden values. The gradients of input and weights
// follow as products over all steps; see weight_gradients.h. The cell is a struct of cells/.

#pragma once

#include <cstdint>
#include <type_traits>

#include "cells/cells.h"
#include "cpu/kit/activation.h"
#include "cpu/kit/gemm.h"
#include "cpu/kit/pairs.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/plan.h"
#include "cpu/recurrent/saved_values.h"
#include "cpu/recurrent/schedule.h"
#include "cpu/recurrent/weight_gradients.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// The addresses that one backward step reads and writes for one vector of hidden units of a row.
template <typename T, typename Stored>
struct CellGradientPointers {
  const Stored* gates;            // the first of kSums saved values, which lie hidden_size apart; see saved_values.h
  const Stored* previous_hidden;  // hidden values of the previous step; only for a cell with kReadsHidden
  const T* cell;           // cell states after this step; null, as the next three, for a cell without a cell state
  const T* previous_cell;  // cell states after the previous step
  const T* grad_cells;     // the caller's gradient of this step's cell states, or null for zero
  T* grad_c;               // on entry the gradient of the cell states after the step, on return that of those before it
  T* grad_h;  // written: the part of the gradient of the previous hidden values that does not come through weight_hh;
              // only for a cell with kReadsHidden
  Stored* grad_gates;  // written: gradients of the kSums sums, sum_size apart
  int64_t hidden_size, sum_size;
  int64_t units;  // how many lanes of the vector are hidden units
};

// Computes one backward step of a vector of hidden units from the gradient of their hidden values.
template <typename Cell, typename Factors, typename T>
FUSED_RNN_INLINE inline void step_cell_backward(const CellGradientPointers<T, typename Factors::Stored>& at,
                                                Vec<T> grad_hidden) {
  Vec<T> values[Cell::kSums], before[Cell::kStates], after[Cell::kStates], grads[Cell::kStates];
  unroll<Cell::kSums>([&](auto i) FUSED_RNN_INLINE {
    values[i] = load_saved<Cell::bounded(i), T>(at.gates + i * at.hidden_size, at.units);
  });
  grads[0] = grad_hidden;
  if constexpr (Cell::kReadsHidden) before[0] = load_widened<T>(at.previous_hidden, at.units);
  if constexpr (Cell::kStates == 2) {
    grads[1] = load(at.grad_c, at.units);
    if (at.grad_cells) grads[1] += load(at.grad_cells, at.units);
    before[1] = load(at.previous_cell, at.units);
    after[1] = load(at.cell, at.units);
  }
  Cell::template backward<Activation>(values, before, after, grads);
  if constexpr (Cell::kReadsHidden) store(at.grad_h, grads[0], at.units);
  if constexpr (Cell::kStates == 2) store(at.grad_c, grads[1], at.units);
  // If the last element of a sum is not complete, the next lane, which is zero, completes it.
  const int64_t terms = divide_up(at.units, Factors::kTerms) * Factors::kTerms;
  unroll<Cell::kSums>(
      [&](auto i) FUSED_RNN_INLINE { Factors::store_terms(at.grad_gates + i * at.sum_size, values[i], terms); });
}

// Factors is the type of the elements that are multiplied: Values<T>, or Pairs, for which the gradients of the gates'
// sums are rounded to bfloat16. Depths of products with weight_hh count elements.
template <typename Cell, typename T, typename Factors = Values<T>>
class BackwardLoop {
 public:
  using Stored = typename Factors::Stored;
  explicit BackwardLoop(const RecurrentBackwardParams<T, Stored>& params)
      : p_(params),
        s_(params.sizes),
        plan_(plan_backward(cells::describe<Cell>(), params.sizes, kRegisters<T>)),
        sum_depth_(divide_up(s_.hidden_size, Factors::kTerms)),
        depth_(Cell::kGates * sum_depth_),
        packed_hh_(plan_.weights_in_place ? 0 : packed_size(s_.output_size, depth_)),
        product_(plan_.weights_in_place ? s_.directions * s_.steps.batch * s_.output_size : 0),
        product_memory_(plan_.threads, plan_.weights_in_place ? product_memory() : 0),
        packed_hr_(projected() ? packed_size(s_.hidden_size, s_.output_size) : 0),
        grad_projected_(projected() ? s_.directions * s_.steps.rows() * s_.output_size : 0) {}

  void run() {
    parallel(plan_.threads, [&](int64_t thread, int64_t count) {
      pack(thread, count);
      all_threads_.wait(count, thread);
      const int64_t bytes = s_.output_size * depth_ * static_cast<int64_t>(sizeof(T));
      const ThreadWork work = work_of_thread(s_, bytes, thread, count);
      for (int64_t d = work.first_direction; d < s_.directions; d += work.direction_stride)
        run_direction(d, work, product_memory_.of(thread));
    });
    RecurrentGradients<Cell, T, Factors>(p_, grad_projected_.data()).run();
  }

 private:
  static_assert(Cell::kStates <= 2, "the loops keep h and at most one cell state");
  static constexpr int kSums = Cell::kSums;
  static constexpr cells::GateRuns kRuns = cells::gate_runs<Cell>();

  // How many values the panels of a weight [depth, columns] take for all directions.
  int64_t packed_size(int64_t columns, int64_t depth) const {
    return s_.directions * padded_to_panels<T>(columns) * depth;
  }
  static int64_t width(int64_t left) { return smaller(left, kPanel<T>); }
  bool projected() const { return p_.weights[0].hr != nullptr; }

  T* packed_hh(int64_t direction) {
    return packed_hh_.data() + direction * padded_to_panels<T>(s_.output_size) * depth_;
  }
  T* product(int64_t direction, int64_t b) {
    return product_.data() + (direction * s_.steps.batch + b) * s_.output_size;
  }
  T* packed_hr(int64_t direction) {
    return packed_hr_.data() + direction * padded_to_panels<T>(s_.hidden_size) * s_.output_size;
  }

  // Packs this thread's share of all directions' weights into panels.
  void pack(int64_t thread, int64_t count) {
    const Range columns = share(s_.output_size, thread, count, kPanel<T>);
    const Range units = share(s_.hidden_size, thread, count, kPanel<T>);
    for (int64_t d = 0; d < s_.directions; ++d) {
      for (int64_t column = columns.begin; !plan_.weights_in_place && column < columns.end; column += kPanel<T>)
        for (int64_t gate = 0; gate < Cell::kGates; ++gate) {
          const Matrix<Stored> weight = {p_.weights[d].hh, s_.output_size, 1};
          pack_panel(weight.from(gate * s_.hidden_size, column), s_.hidden_size, width(s_.output_size - column),
                     packed_hh(d) + column * depth_ + gate * sum_depth_ * kPanel<T>);
        }
      for (int64_t unit = units.begin; projected() && unit < units.end; unit += kPanel<T>)
        pack_panel(Matrix<T>{p_.weights[d].hr + unit, s_.hidden_size, 1}, s_.output_size, width(s_.hidden_size - unit),
                   packed_hr(d) + unit * s_.output_size);
    }
  }

  // Computes a thread's part of all steps of a direction, and then of the gradients of the initial states.
  void run_direction(int64_t direction, const ThreadWork& work, T* memory) {
    const Range columns = share(s_.output_size, work.rank, work.team_size, kPanel<T>);
    const Range units = share(s_.hidden_size, work.rank, work.team_size, kPanel<T>);
    Barrier& team = teams_[direction];
    for (int64_t index = s_.steps.time - 1; index >= -1; --index) {
      // Of the following step's rows, the first previous_rows have their previous values in this step; the sequences
      // of the others begin there.
      const Step following = index + 1 < s_.steps.time ? step_at(s_.steps, direction, index + 1) : Step{};
      const Step step = index >= 0 ? step_at(s_.steps, direction, index) : Step{};
      const int64_t continuing = following.previous_rows;
      if (plan_.weights_in_place)
        multiply_in_place(direction, following, intersect(work.batch, {0, following.rows}), columns, memory);
      serpentine(columns, kPanel<T>, index + 1, [&](int64_t column, int64_t next) {
        rows(direction, step, following, column, next, intersect(work.batch, {0, continuing}), true);
        rows(direction, step, following, column, next, intersect(work.batch, {continuing, step.rows}), false);
        write_initial_gradient(direction, following, column, next, intersect(work.batch, {continuing, following.rows}));
      });
      if (projected() && index >= 0) {
        team.wait(work.team_size, work.rank);
        for (int64_t unit = units.begin; unit < units.end; unit += kPanel<T>)
          project(direction, step, unit, intersect(work.batch, {0, step.rows}));
      }
      team.wait(work.team_size, work.rank);
    }
  }

  // The distance of the gradients of two sums of a row, and of two rows: each sum has whole elements.
  int64_t sum_size() const { return Factors::kTerms * sum_depth_; }
  int64_t row_size() const { return kSums * sum_size(); }

  Stored* grad_gates_row(int64_t direction, int64_t row) const {
    return p_.grad_gates + (direction * s_.steps.rows() + row) * row_size();
  }

  // Returns the part that `count` gates have in the product of weight_hh, read in place, and gradients of sums; see
  // for_each_run().
  Product<T, Factors> product_in_place(int64_t direction, const Step& following, int64_t gate, int64_t sum,
                                       int64_t count) {
    return {.rows = s_.steps.batch,
            .columns = s_.output_size,
            .depth = count * s_.hidden_size,
            .a = {grad_gates_row(direction, following.first_row) + sum * sum_size(), row_size(), 1},
            .b = {p_.weights[direction].hh + gate * s_.hidden_size * s_.output_size, s_.output_size, 1},
            .c = product(direction, 0),
            .c_row = s_.output_size,
            .accumulate = gate > 0};
  }

  // Returns how many values of memory a thread needs for these products.
  int64_t product_memory() {
    int64_t most = 0;
    for_each_run<Cell>(s_.hidden_size, Factors::kTerms, [&](int64_t gate, int64_t sum, int64_t count) {
      most = larger(most, BlockPlan<T, Factors>(product_in_place(0, Step{}, gate, sum, count)).memory());
    });
    return most;
  }

  // Computes what multiply_hh() does, for all `columns`, with weight_hh read in place.
  void multiply_in_place(int64_t direction, const Step& following, Range batch, Range columns, T* memory) {
    for_each_run<Cell>(s_.hidden_size, Factors::kTerms, [&](int64_t gate, int64_t sum, int64_t count) {
      gemm_block(product_in_place(direction, following, gate, sum, count), batch, columns, memory);
    });
  }

  // Sets the tile to the gradients of the sums of the following step, from batch row b on, times weight_hh. The tiles
  // prefetch the next panel, each a part of it.
  template <typename AnyTile>
  FUSED_RNN_INLINE void multiply_hh(AnyTile& tile, int64_t direction, const Step& following, int64_t b, int64_t column,
                                    int64_t next, int64_t tile_index) {
    if (plan_.weights_in_place) {
      tile.load_from(product(direction, b) + column, s_.output_size, width(s_.output_size - column));
      return;
    }
    const T *weights = packed_hh(direction), *panel = weights + column * depth_;
    const T* grads = reinterpret_cast<const T*>(grad_gates_row(direction, following.first_row + b));
    const auto lines =
        PrefetchLines<T>::for_tile(weights + next * depth_, depth_ * kPanel<T>, panel, tile_index, depth_);
    tile.zero();
    unroll<kRuns.count>([&](auto i) FUSED_RNN_INLINE {
      constexpr cells::GateRun run = kRuns.run[i];
      tile.template multiply_in_parts<kPanelVectors, Factors>(
          grads + run.sum * sum_depth_, kSums * sum_depth_, 1, panel + run.gate * sum_depth_ * kPanel<T>, kPanel<T>,
          run.count * sum_depth_, 0, lines.from(run.gate * sum_depth_));
    });
  }

  // Prefetches what finish() reads and writes for some rows and a panel of units, while their sums are computed.
  void prefetch(int64_t direction, const Step& step, int64_t unit, int64_t count, int64_t b, int64_t rows) const {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(Stored)), kCellLine = PrefetchLines<T>::kValues;
    const int64_t hidden = s_.hidden_size, from = direction * s_.steps.rows() + step.first_row + b;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < kSums; ++i)
        for (int64_t lane = 0; lane < count; lane += kLine) {
          __builtin_prefetch(p_.gates + ((from + r) * kSums + i) * hidden + unit + lane);
          __builtin_prefetch(p_.grad_gates + (from + r) * row_size() + i * sum_size() + unit + lane, 1);
        }
      // The cell states after the step are in the cache already: they were the previous ones of the following step.
      for (int64_t lane = 0; p_.cells && b + r < step.previous_rows && lane < count; lane += kCellLine)
        __builtin_prefetch(p_.cells + (direction * s_.steps.rows() + step.previous_first + b + r) * hidden + unit +
                           lane);
    }
  }

  // Computes one backward step of a panel of hidden values, for batch rows that all have, or all lack, a following
  // step.
  void rows(int64_t direction, const Step& step, const Step& following, int64_t column, int64_t next, Range batch,
            bool has_following) {
    const int64_t count = width(s_.output_size - column), total = s_.directions * s_.output_size;
    for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
      const int64_t b = batch.begin + offset, row = step.first_row + b;
      if (!projected()) prefetch(direction, step, column, count, b, tile_rows());
      Tile<T, tile_rows(), kPanelVectors> tile;
      if (has_following)
        multiply_hh(tile, direction, following, b, column, next, offset / tile_rows());
      else
        tile.zero();
      if (!has_following || Cell::kReadsHidden)
        tile.add(p_.grad_h + (direction * s_.steps.batch + b) * s_.output_size + column, s_.output_size, count);
      if (has_following) take_replaced(tile, direction, following, column, count, b);
      if (p_.grad_output) tile.add(p_.grad_output + row * total + direction * s_.output_size + column, total, count);
      if (projected()) {
        tile.store_to(grad_projected_.data() + (direction * s_.steps.rows() + row) * s_.output_size + column,
                      s_.output_size, count);
      } else {
        finish(tile, direction, step, column, count, b);
      }
    });
  }

  // Writes grad_h, the gradient of h0, for batch rows whose sequence begins with the following step.
  void write_initial_gradient(int64_t direction, const Step& following, int64_t column, int64_t next, Range batch) {
    const int64_t count = width(s_.output_size - column);
    for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
      const int64_t b = batch.begin + offset;
      T* grad_h = p_.grad_h + (direction * s_.steps.batch + b) * s_.output_size + column;
      Tile<T, tile_rows(), kPanelVectors> tile;
      multiply_hh(tile, direction, following, b, column, next, offset / tile_rows());
      if (Cell::kReadsHidden) tile.add(grad_h, s_.output_size, count);
      take_replaced(tile, direction, following, column, count, b);
      tile.store_to(grad_h, s_.output_size, count);
    });
  }

  // Adds the first `count` values of a gradient to that of states which replaced others, unless it is null, and leaves
  // zero, since nothing reaches the states that were replaced.
  static void move_gradient(T* from, int64_t count, T* to) {
    for (int64_t i = 0; to && i < count; ++i) to[i] += from[i];
    for (int64_t i = 0; i < count; ++i) from[i] = T(0);
  }

  // Takes from a tile, the gradients of the hidden values before the following step, the rows whose values were
  // replaced.
  template <int kRows>
  void take_replaced(Tile<T, kRows, kPanelVectors>& tile, int64_t direction, const Step& following, int64_t column,
                     int64_t count, int64_t b) {
    if (!any_reset(p_.resets, direction, following, {b, b + kRows})) return;
    alignas(64) T values[kRows * kPanel<T>];
    tile.store_to(values, kPanel<T>, kPanel<T>);
    for (int64_t r = 0; r < kRows; ++r) {
      if (!p_.resets.before(direction, following.first_row + b + r)) continue;
      const int64_t state = p_.resets.state(direction, following.t, b + r) * s_.output_size + column;
      move_gradient(values + r * kPanel<T>, count, p_.grad_reset_h ? p_.grad_reset_h + state : nullptr);
    }
    tile.load_from(values, kPanel<T>, kPanel<T>);
  }

  // Computes the gradient of the hidden values before the projection, and the backward step from it.
  void project(int64_t direction, const Step& step, int64_t unit, Range batch) {
    const int64_t count = width(s_.hidden_size - unit);
    for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
      const int64_t b = batch.begin + offset;
      prefetch(direction, step, unit, count, b, tile_rows());
      Tile<T, tile_rows(), kPanelVectors> tile;
      tile.zero();
      const int64_t row = direction * s_.steps.rows() + step.first_row + b;
      tile.multiply_in_parts(grad_projected_.data() + row * s_.output_size, s_.output_size, 1,
                             packed_hr(direction) + unit * s_.output_size, kPanel<T>, s_.output_size);
      finish(tile, direction, step, unit, count, b);
    });
  }

  // Computes the cell's backward step for a tile of gradients of hidden values.
  template <int kRows>
  __attribute__((flatten)) void finish(const Tile<T, kRows, kPanelVectors>& tile, int64_t direction, const Step& step,
                                       int64_t unit, int64_t count, int64_t b) {
    alignas(64) T grad_hidden[kRows * kPanel<T>];
    tile.store_to(grad_hidden, kPanel<T>, kPanel<T>);
    const int64_t hidden = s_.hidden_size, all_rows = direction * s_.steps.rows();
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t row = all_rows + step.first_row + b + r, state = (direction * s_.steps.batch + b + r) * hidden;
      const bool has_previous = b + r < step.previous_rows;
      const bool replaced = p_.resets.before(direction, step.first_row + b + r);
      const int64_t replacing = replaced ? p_.resets.state(direction, step.t, b + r) * hidden : 0;
      for (int64_t lane = 0; lane < count; lane += kLanes<T>) {
        const int64_t at = unit + lane;
        CellGradientPointers<T, Stored> pointers = {};
        pointers.gates = p_.gates + row * kSums * hidden + at;
        pointers.grad_gates = p_.grad_gates + row * row_size() + at;
        if constexpr (Cell::kReadsHidden) {
          pointers.previous_hidden =
              replaced ? p_.reset_h + replacing + at
              : has_previous
                  ? p_.output + (step.previous_first + b + r) * s_.directions * hidden + direction * hidden + at
                  : p_.h0 + state + at;
          pointers.grad_h = p_.grad_h + state + at;
        }
        if constexpr (Cell::kStates == 2) {
          pointers.cell = p_.cells + row * hidden + at;
          pointers.previous_cell = replaced       ? p_.reset_c + replacing + at
                                   : has_previous ? p_.cells + (all_rows + step.previous_first + b + r) * hidden + at
                                                  : p_.c0 + state + at;
          pointers.grad_cells = p_.grad_cells ? p_.grad_cells + row * hidden + at : nullptr;
          pointers.grad_c = p_.grad_c + state + at;
        }
        pointers.hidden_size = hidden;
        pointers.sum_size = sum_size();
        pointers.units = smaller(count - lane, kLanes<T>);
        step_cell_backward<Cell, Factors, T>(pointers, Vec<T>::loadu(grad_hidden + r * kPanel<T> + lane));
      }
      if (Cell::kStates == 2 && replaced)
        move_gradient(p_.grad_c + state + unit, count, p_.grad_reset_c ? p_.grad_reset_c + replacing + unit : nullptr);
    }
  }

  const RecurrentBackwardParams<T, Stored>& p_;
  const RecurrentSizes& s_;
  const BackwardPlan plan_;
  const int64_t sum_depth_;          // how many elements hold the terms of one gate, one for each hidden unit
  const int64_t depth_;              // the depth of the product with weight_hh, kGates * sum_depth_
  Scratch<T> packed_hh_;             // [directions, panels, depth_, kPanel]: weight_hh, unless it is read in place
  Scratch<T> product_;               // [directions, batch, output_size]: if it is, the product with it
  ThreadScratch<T> product_memory_;  // what that product needs
  Scratch<T> packed_hr_;             // [directions, panels, output_size, kPanel]: weight_hr, with a projection
  Scratch<T> grad_projected_;        // [directions, rows, output_size]: gradients of the projected hidden values
  Barrier all_threads_, teams_[2];
};

}  // namespace

namespace CPU_CAPABILITY {

template <typename Cell, typename T, typename Stored>
void recurrent_backward(const RecurrentBackwardParams<T, Stored>& params) {
  if constexpr (std::is_same_v<T, Stored>)
    BackwardLoop<Cell, T>(params).run();
  else if constexpr (Pairs::kBuilt)
    BackwardLoop<Cell, T, Pairs>(params).run();
}

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
