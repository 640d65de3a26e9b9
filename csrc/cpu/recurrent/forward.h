// The forward loop over the steps of a recurrent layer. The products, activations and states of a step are fused: only
// final values are stored to memory. The cell is a struct of cells/.

#pragma once

#include <cstdint>
#include <cstring>

#include "cells/cells.h"
#include "cpu/kit/activation.h"
#include "cpu/kit/gemm.h"
#include "cpu/kit/pairs.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/gate_sums.h"
#include "cpu/recurrent/packed_weights.h"
#include "cpu/recurrent/plan.h"
#include "cpu/recurrent/schedule.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// The addresses that one step reads and writes for one vector of hidden units of a row.
template <typename T>
struct CellPointers {
  const T* previous;  // hidden values of the previous step
  T* hidden;          // hidden values of this step
  T* cell;            // cell states, updated in place; null for a cell without a cell state
  T* gates;           // the first of kSums values saved for backward, hidden_size apart; null if nothing is saved
  T* cells;           // the cell states saved for backward; null if nothing is saved
  int64_t hidden_size;
  int64_t units;  // how many lanes of the vector are hidden units
};

// Computes one step of a vector of hidden units, whose sums lie `stride` apart.
template <typename Cell, typename T>
FUSED_RNN_INLINE inline void step_cell(const T* sums, int64_t stride, const CellPointers<T>& at) {
  Vec<T> values[Cell::kSums], states[Cell::kStates];
  unroll<Cell::kSums>([&](auto i) FUSED_RNN_INLINE { values[i] = Vec<T>::loadu(sums + i * stride); });
  if constexpr (Cell::kReadsHidden) states[0] = load(at.previous, at.units);
  if constexpr (Cell::kStates == 2) states[1] = load(at.cell, at.units);
  Cell::template forward<Activation>(values, states);
  if constexpr (Cell::kStates == 2) store(at.cell, states[1], at.units);
  store(at.hidden, states[0], at.units);
  if (at.gates) {
    unroll<Cell::kSums>([&](auto i) FUSED_RNN_INLINE { store(at.gates + i * at.hidden_size, values[i], at.units); });
    if constexpr (Cell::kStates == 2) store(at.cells, states[1], at.units);
  }
}

template <typename Cell, typename T, typename Factors = Values<T>>
class ForwardLoop {
 public:
  explicit ForwardLoop(const RecurrentForwardParams<T>& params)
      : p_(params),
        s_(params.sizes),
        plan_(plan_forward(cells::describe<Cell>(), params.sizes, kRegisters<T>)),
        w_(plan_, params.weights, params.sizes),
        sums_(plan_.input_first && !params.gates ? s_.directions * s_.steps.rows() * kSums * s_.hidden_size : 0),
        unprojected_(w_.projected ? s_.directions * s_.steps.batch * s_.hidden_size : 0) {}

  void run() {
    if (plan_.input_first) multiply_input();
    parallel(plan_.threads, [&](int64_t thread, int64_t count) {
      w_.pack(thread, count);
      all_threads_.wait(count);
      const int64_t bytes = w_.blocks * w_.block_size * static_cast<int64_t>(sizeof(T));
      const ThreadWork work = work_of_thread(s_, bytes, thread, count);
      for (int64_t d = work.first_direction; d < s_.directions; d += work.direction_stride) run_direction(d, work);
    });
  }

 private:
  static_assert(Cell::kStates <= 2, "the loops keep h and at most one cell state");
  static constexpr int kSums = Cell::kSums;
  static constexpr bool kPaired = Factors::kTerms == 2;
  // How many rows' sums are kept in the first-level cache while the weights of a block are read once.
  static constexpr int64_t kGroupRows = 48;

  // Computes input times weight_ih for all steps, into the array of gates if there is one, which saves memory.
  void multiply_input() {
    const int64_t rows = s_.steps.rows(), columns = Cell::kGates * s_.hidden_size;
    Scratch<T> widened(w_.ih(0).scratch(columns));
    for (int64_t d = 0; d < s_.directions; ++d)
      gemm<T>({.rows = rows,
               .columns = columns,
               .depth = s_.input_size,
               .a = {p_.input, s_.input_size, 1},
               .b = {w_.ih(d).rows(0, columns, widened.data()), 1, s_.input_size},
               .c = input_sums(d),
               .c_row = kSums * s_.hidden_size},
              s_.threads);
  }

  T* input_sums(int64_t direction) {
    return (p_.gates ? p_.gates : sums_.data()) + direction * s_.steps.rows() * kSums * s_.hidden_size;
  }

  // Returns the hidden values before a step of batch row b, and of the rows behind it if no state is replaced there.
  const T* previous(int64_t direction, const Step& step, int64_t b) const {
    if (p_.resets.before(direction, step.first_row + b))
      return p_.reset_h + p_.resets.state(direction, step.t, b) * s_.output_size;
    return b < step.previous_rows ? p_.output + ((step.previous_first + b) * s_.directions + direction) * s_.output_size
                                  : p_.h0 + (direction * s_.steps.batch + b) * s_.output_size;
  }

  // If states of the given batch rows are replaced before a step, copies the hidden values of all these rows before the
  // step to `hidden`, [batch, output_size], replaced ones among them, so that the products find them side by side; and
  // replaces the cell states of the given units. Returns whether it does so.
  bool replace_states(int64_t direction, const Step& step, Range batch, Range units, T* hidden) const {
    if (!any_reset(p_.resets, direction, step, batch)) return false;
    for (int64_t b = batch.begin; b < batch.end; ++b) {
      std::memcpy(hidden + b * s_.output_size, previous(direction, step, b),
                  static_cast<size_t>(s_.output_size) * sizeof(T));
      if (!p_.c_n || !p_.resets.before(direction, step.first_row + b)) continue;
      std::memcpy(p_.c_n + (direction * s_.steps.batch + b) * s_.hidden_size + units.begin,
                  p_.reset_c + p_.resets.state(direction, step.t, b) * s_.hidden_size + units.begin,
                  static_cast<size_t>(units.size()) * sizeof(T));
    }
    return true;
  }

  // Rounds the input and the previous hidden values of a step to pairs, [batch, depth].
  void round(int64_t direction, const Step& step, Range batch, T* pairs) const {
    for (int64_t b = batch.begin; b < batch.end; ++b) {
      T* target = pairs + b * w_.depth;
      if (w_.inputs > 0) round_to_pairs(p_.input + (step.first_row + b) * s_.input_size, s_.input_size, target);
      round_to_pairs(previous(direction, step, b), s_.output_size, target + w_.inputs);
    }
  }

  bool in_place() const { return plan_.weights == WeightUse::kInPlace; }
  bool packs_in_step() const { return plan_.weights == WeightUse::kPackedInStep; }

  // The buffers of one thread.
  struct ThreadBuffers {
    T* weights;       // the packed weights of a block; null if weights are read in place
    T* widened;       // scratch for weights of half precision, widened to T
    const T* pairs;   // [batch, depth], as round() leaves them; null unless weights are packed as pairs
    const T* hidden;  // [batch, output_size], as replace_states() leaves them; null if it replaced no states
  };

  // Computes a thread's part of all steps of a direction.
  void run_direction(int64_t direction, const ThreadWork& work) {
    const Range blocks = share(w_.blocks, work.rank, work.team_size);
    Barrier& team = teams_[direction];
    Scratch<T> packed(packs_in_step() ? w_.block_size : 0), widened(packs_in_step() ? w_.widened_size() : 0);
    Scratch<T> pairs(kPaired && !in_place() ? s_.steps.batch * w_.depth : 0);
    Scratch<T> hidden(p_.resets.begins ? s_.steps.batch * s_.output_size : 0);
    const Range units = intersect({blocks.begin * w_.block_units, blocks.end * w_.block_units}, {0, s_.hidden_size});
    for (int64_t index = 0; index < s_.steps.time; ++index) {
      const Step step = step_at(s_.steps, direction, index);
      const Range all = intersect(work.batch, {0, step.rows});
      const bool replaced = replace_states(direction, step, all, units, hidden.data());
      // If states are replaced, the hidden values before the step lie in one array for all rows.
      const int64_t previous_rows = replaced ? 0 : step.previous_rows;
      const Range continuing = intersect(work.batch, {0, previous_rows});
      const Range starting = intersect(work.batch, {previous_rows, step.rows});
      if constexpr (kPaired)
        if (!in_place()) round(direction, step, all, pairs.data());
      serpentine(blocks, 1, index, [&](int64_t block, int64_t next) {
        T* weights = in_place() ? nullptr : packs_in_step() ? packed.data() : w_.packed(direction, block);
        const ThreadBuffers buffers = {weights, widened.data(), pairs.data(), replaced ? hidden.data() : nullptr};
        rows(direction, step, block, next, buffers, continuing, true);
        rows(direction, step, block, next, buffers, starting, false);
      });
      team.wait(work.team_size);
      if (w_.projected) {
        project(direction, step, work);
        team.wait(work.team_size);
      }
    }
    copy_last(direction, work);
  }

  // Computes one step of a block of units, for batch rows that all have, or all lack, a previous step.
  void rows(int64_t direction, const Step& step, int64_t block, int64_t next, const ThreadBuffers& buffers, Range batch,
            bool has_previous) {
    const int64_t previous_row = (has_previous ? s_.directions : 1) * s_.output_size;
    w_.for_width_of(block, [&](auto vectors) {
      for (int64_t first = batch.begin; first < batch.end; first += kGroupRows)
        group<vectors()>({direction, block, next, buffers, packs_in_step() && first == batch.begin, first,
                          smaller(batch.end - first, kGroupRows), step.first_row + first,
                          buffers.hidden ? buffers.hidden + first * s_.output_size : previous(direction, step, first),
                          previous_row});
    });
  }

  // A group of batch rows of a step, and a block of units.
  struct Group {
    int64_t direction, block;
    int64_t next;  // the block that is computed after it
    ThreadBuffers buffers;
    bool packs;            // whether this group packs the block's weights, just before it uses them
    int64_t batch, rows;   // the first batch row, and the number of rows
    int64_t row;           // the index of the first row in arrays of all steps' rows
    const T* previous;     // hidden values of the previous step, from the first row on
    int64_t previous_row;  // their row stride
  };

  template <int kWidth>
  void group(const Group& g) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    alignas(64) T sums[kGroupRows * kSums * kUnits];
    start<kWidth>(g, sums);
    if (in_place()) {
      for_each_tile<kMaxRows>(g.rows, [&](auto tile_rows, int64_t row) {
        add_in_place<tile_rows()>(g, row, sums + row * kSums * kUnits, kUnits);
      });
    } else {
      // All rows are multiplied by the weights of a gate before those of the next, while the weights are in the cache.
      int packed = g.packs ? 0 : Cell::kGates;
      for (int gate = 0; gate < Cell::kGates; ++gate)
        for_each_tile<kPanelRows>(g.rows, [&](auto tile_rows, int64_t row) {
          constexpr int kAtOnce = smaller(kGatesAtOnce<tile_rows(), kWidth>, Cell::kGates);
          constexpr int kRest = Cell::kGates % kAtOnce == 0 ? kAtOnce : Cell::kGates % kAtOnce;
          if (gate % kAtOnce != 0) return;
          for (; packed < smaller(gate + kAtOnce, Cell::kGates); ++packed)
            w_.template pack_gate<kUnits>(g.direction, g.block, packed, g.buffers.widened, g.buffers.weights);
          if (gate + kAtOnce >= Cell::kGates) prefetch(g, row, tile_rows());
          if (gate + kAtOnce <= Cell::kGates)
            add<tile_rows(), kWidth, kAtOnce>(g, gate, row, sums + row * kSums * kUnits);
          else
            add<tile_rows(), kWidth, kRest>(g, gate, row, sums + row * kSums * kUnits);
        });
    }
    finish<kUnits>(g, sums);
  }

  // Computes the states from the sums. Everything is inlined here, so that the processor overlaps successive vectors.
  template <int64_t kUnits>
  __attribute__((flatten)) void finish(const Group& g, const T* sums) {
    for (int64_t row = 0; row < g.rows; ++row)
      for (int64_t lane = 0; lane < w_.units(g.block); lane += kLanes<T>)
        step_cell<Cell>(sums + row * kSums * kUnits + lane, kUnits, pointers_at(g, row, lane));
  }

  // Prefetches the cache lines that finish() writes saved values to, while the sums are computed.
  void prefetch(const Group& g, int64_t row, int64_t rows) const {
    if (!p_.gates) return;
    const int64_t hidden = s_.hidden_size, unit = g.block * w_.block_units;
    const int64_t from = g.direction * s_.steps.rows() + g.row + row;
    for (int64_t r = from; r < from + rows; ++r) {
      for (int64_t i = 0; i < kSums; ++i) __builtin_prefetch(p_.gates + (r * kSums + i) * hidden + unit, 1);
      if (p_.cells) __builtin_prefetch(p_.cells + r * hidden + unit, 1);
    }
  }

  // Initialises the sums with the biases and, if it was computed before the first step, the input's part.
  template <int kWidth>
  void start(const Group& g, T* sums) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    const T* bias_of_block = w_.bias(g.direction, g.block);
    for (int64_t row = 0; row < g.rows; ++row)
      std::memcpy(sums + row * kSums * kUnits, bias_of_block, kSums * kUnits * sizeof(T));
    if (!plan_.input_first) return;
    const T* input_part = input_sums(g.direction) + g.row * kSums * s_.hidden_size + g.block * w_.block_units;
    for (int64_t i = 0; i < g.rows * kSums; ++i) {
      if (i % kSums >= Cell::kGates) continue;
      for (int64_t unit = 0; unit < w_.units(g.block); ++unit)
        sums[i * kUnits + unit] += input_part[i * s_.hidden_size + unit];
    }
  }

  // Adds input times weight_ih and previous hidden values times weight_hh to the sums of kGates gates, from `gate` on.
  // The tiles prefetch the weights that are needed next, each a part of them.
  template <int kRows, int kWidth, int kGates>
  void add(const Group& g, int gate, int64_t row, T* sums) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    const int64_t stride = w_.depth * kUnits, inputs = w_.inputs;
    const T* weights = g.buffers.weights + gate * stride;
    const auto [next_inputs, next_hidden] =
        w_.prefetch_after(g.direction, g.block, gate + kGates, g.next, weights, kGates * stride, row / kRows);
    const T *input = p_.input + (g.row + row) * s_.input_size, *hidden = g.previous + row * g.previous_row;
    int64_t input_row = s_.input_size, hidden_row = g.previous_row;
    if constexpr (kPaired) {
      input = g.buffers.pairs + (g.batch + row) * w_.depth;
      hidden = input + inputs;
      input_row = hidden_row = w_.depth;
    }
    if (inputs > 0)
      multiply_gates<kSums, kRows, kWidth, kGates, input_sum, Factors>(input, input_row, weights, stride, inputs,
                                                                       next_inputs, gate, sums);
    multiply_gates<kSums, kRows, kWidth, kGates, Cell::hidden_sum, Factors>(
        hidden, hidden_row, weights + inputs * kUnits, stride, w_.depth - inputs, next_hidden, gate, sums);
  }

  template <int kRows>
  void add_in_place(const Group& g, int64_t row, T* sums, int64_t width) {
    const int64_t unit = g.block * w_.block_units, hidden = s_.hidden_size;
    w_.ih(g.direction).as_stored([&](const auto* weight) {
      dot_gates<kSums, kRows, input_sum>(p_.input + (g.row + row) * s_.input_size, s_.input_size,
                                         weight + unit * s_.input_size, Cell::kGates, hidden, s_.input_size,
                                         w_.units(g.block), sums, width);
    });
    w_.hh(g.direction).as_stored([&](const auto* weight) {
      dot_gates<kSums, kRows, Cell::hidden_sum>(g.previous + row * g.previous_row, g.previous_row,
                                                weight + unit * s_.output_size, Cell::kGates, hidden, s_.output_size,
                                                w_.units(g.block), sums, width);
    });
  }

  CellPointers<T> pointers_at(const Group& g, int64_t r, int64_t lane) {
    const int64_t hidden = s_.hidden_size, unit = g.block * w_.block_units + lane, row = g.row + r;
    const int64_t saved = g.direction * s_.steps.rows() + row, state = g.direction * s_.steps.batch + g.batch + r;
    return {.previous = g.previous + r * g.previous_row + unit,
            .hidden = w_.projected ? unprojected_.data() + state * hidden + unit
                                   : p_.output + (row * s_.directions + g.direction) * s_.output_size + unit,
            .cell = p_.c_n ? p_.c_n + state * hidden + unit : nullptr,
            .gates = p_.gates ? p_.gates + saved * kSums * hidden + unit : nullptr,
            .cells = p_.cells ? p_.cells + saved * hidden + unit : nullptr,
            .hidden_size = hidden,
            .units = smaller(s_.hidden_size - unit, kLanes<T>)};
  }

  // Computes output = hidden values times weight_hr, for this thread's columns.
  void project(int64_t direction, const Step& step, const ThreadWork& work) {
    const int64_t width = s_.directions * s_.output_size;
    const Range columns = share(s_.output_size, work.rank, work.team_size, kPanel<T>);
    const Range batch = intersect(work.batch, {0, step.rows});
    for (int64_t column = columns.begin; column < columns.end; column += kPanel<T>)
      for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
        const int64_t b = batch.begin + offset, left = columns.end - column;
        multiply_panel<T, tile_rows()>(unprojected_.data() + (direction * s_.steps.batch + b) * s_.hidden_size,
                                       s_.hidden_size, 1, w_.projection(direction) + column * s_.hidden_size, kPanel<T>,
                                       s_.hidden_size,
                                       p_.output + (step.first_row + b) * width + direction * s_.output_size + column,
                                       width, smaller(left, kPanel<T>), false);
      });
  }

  // Writes h_n: the output of each sequence's last step in this direction, or h0 for a sequence without steps.
  void copy_last(int64_t direction, const ThreadWork& work) {
    const Range columns = share(s_.output_size, work.rank, work.team_size);
    const int64_t width = s_.directions * s_.output_size, size = s_.output_size;
    int64_t t = direction == 0 ? s_.steps.time - 1 : 0;
    for (int64_t b = work.batch.begin; b < work.batch.end; ++b) {
      while (t > 0 && s_.steps.batch_size(t) <= b) --t;
      const bool empty = s_.steps.batch_size(t) <= b;
      const T* last = empty ? p_.h0 + (direction * s_.steps.batch + b) * size
                            : p_.output + (s_.steps.first_row(t) + b) * width + direction * size;
      std::memcpy(p_.h_n + (direction * s_.steps.batch + b) * size + columns.begin, last + columns.begin,
                  static_cast<size_t>(columns.size()) * sizeof(T));
    }
  }

  const RecurrentForwardParams<T>& p_;
  const RecurrentSizes& s_;
  const ForwardPlan plan_;
  PackedWeights<Cell, T, Factors> w_;
  Scratch<T> sums_;         // [directions, rows, kSums * hidden]: the input's part of the sums
  Scratch<T> unprojected_;  // [directions, batch, hidden]: hidden values before the projection
  Barrier all_threads_, teams_[2];
};

}  // namespace

namespace CPU_CAPABILITY {

template <typename Cell, typename T>
void recurrent_forward(const RecurrentForwardParams<T>& params) {
  if constexpr (std::is_same_v<T, float> && Pairs::kBuilt)
    if (params.pairs) return ForwardLoop<Cell, float, Pairs>(params).run();
  ForwardLoop<Cell, T>(params).run();
}

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
