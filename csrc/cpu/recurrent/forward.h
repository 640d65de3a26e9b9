// The forward loop over the steps of a recurrent layer. The products, activations and states of a step are fused: only
// final values are stored to memory. The cell is a struct of cells/.

#pragma once

#include <cstdint>
#include <cstring>

#include "cells/cells.h"
#include "cpu/kit/activation.h"
#include "cpu/kit/gemm.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/elements.h"
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
  T* cells;           // the cell states after this step, for backward or the caller; null if they are not wanted
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
  }
  if constexpr (Cell::kStates == 2)
    if (at.cells) store(at.cells, states[1], at.units);
}

// If kFrozen, the layer is frozen: its weights were packed before the call.
template <typename Cell, typename T, typename Factors = Values<T>, bool kFrozen = false>
class ForwardLoop {
 public:
  explicit ForwardLoop(const RecurrentForwardParams<T>& params)
      : p_(params),
        s_(params.sizes),
        plan_(kFrozen ? plan_frozen(cells::describe<Cell>(), params.sizes, params.frozen.block_units)
                      : plan_forward(cells::describe<Cell>(), params.sizes, kRegisters<T>)),
        w_(plan_, params),
        step_inputs_(plan_.input_first ? 0 : w_.inputs),
        sums_(plan_.input_first && !params.gates ? s_.directions * s_.steps.rows() * kSums * s_.hidden_size : 0),
        unprojected_(w_.projected ? s_.directions * s_.steps.batch * s_.hidden_size : 0) {}

  void run() {
    if (plan_.input_first) kFrozen ? multiply_packed_input() : multiply_input();
    parallel(plan_.threads, [&](int64_t thread, int64_t count) {
      if constexpr (!kFrozen) {
        w_.pack(thread, count);
        all_threads_.wait(count);
      }
      const int64_t bytes = w_.blocks * w_.block_size * static_cast<int64_t>(sizeof(T));
      const ThreadWork work = work_of_thread(s_, bytes, thread, count);
      for (int64_t d = work.first_direction; d < s_.directions; d += work.direction_stride) run_direction(d, work);
    });
  }

 private:
  static_assert(Cell::kStates <= 2, "the loops keep h and at most one cell state");
  static constexpr int kSums = Cell::kSums;
  static constexpr bool kConverted = kConverts<Factors>;
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

  // Computes the same with packed weights, and adds the biases, so that the sums have the bits that they have if the
  // input's product is part of a step.
  void multiply_packed_input() {
    if constexpr (kFrozen) {
      const int64_t rows = s_.steps.rows(), hidden = s_.hidden_size, elements = w_.inputs * Factors::kWidth;
      parallel(s_.threads, [&](int64_t thread, int64_t count) {
        const Range mine = share(s_.directions * w_.blocks, thread, count);
        Scratch<T> converted(kConverted ? kGroupRows * elements : 0);
        T scales[kGroupRows];
        for (int64_t i = mine.begin; i < mine.end; ++i)
          for (int64_t first = 0; first < rows; first += kGroupRows) {
            const int64_t here = smaller(rows - first, kGroupRows), d = i / w_.blocks, block = i % w_.blocks;
            const T* input = p_.input + first * s_.input_size;
            if constexpr (kConverted)
              for (int64_t row = 0; row < here; ++row)
                convert_row<Factors>(input + row * s_.input_size, s_.input_size, converted.data() + row * elements,
                                     scales + row);
            const Activations a = {kConverted ? converted.data() : input, kConverted ? elements : s_.input_size, scales,
                                   1};
            w_.for_width_of(block, [&](auto width) {
              multiply_packed_input<width()>(d, block, a, here, input_sums(d) + first * kSums * hidden);
            });
          }
      });
    }
  }

  // Rows that are multiplied by weights, as elements, `stride` apart, and their scales if they have any.
  struct Activations {
    const T* data;
    int64_t stride;
    const T* scales;
    int64_t scale_stride;
  };

  // Computes the input's part of the sums of a block, for up to kGroupRows rows.
  template <int kWidth>
  void multiply_packed_input(int64_t direction, int64_t block, const Activations& a, int64_t rows, T* target) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    alignas(64) T sums[kGroupRows * kSums * kUnits];
    start_with_biases<kUnits>(direction, block, rows, sums);
    const T* weights = w_.packed(direction, block);
    for_each_tile<kPanelRows>(rows, [&](auto tile_rows, int64_t row) {
      for_gates_at_once<tile_rows(), kWidth>([&](auto gate, auto gates) {
        const int64_t stride = w_.inputs * kUnits;
        const T* gate_weights = weights + gate * stride;
        multiply_gates<tile_rows(), kWidth, gates(), Factors>(
            a.data + row * a.stride, a.stride, gate_weights, stride, w_.inputs, PrefetchLines<T>{gate_weights}, gate,
            {sums + row * kSums * kUnits, kSums * kUnits, kSumsOf<Cell>.input}, scales(direction, block, false, a, row),
            w_.block_units);
      });
    });
    for (int64_t i = 0; i < rows * kSums; ++i)
      if (i % kSums < Cell::kGates)
        std::memcpy(target + i * s_.hidden_size + block * w_.block_units, sums + i * kUnits,
                    static_cast<size_t>(w_.units(block)) * sizeof(T));
  }

  // Returns what makes numbers of the sums of a block, from row number `row` of the activations on.
  Scales<Factors> scales(int64_t direction, int64_t block, bool of_hidden, const Activations& a, int64_t row) {
    if constexpr (kScaled<Factors>)
      return {w_.scale(direction, block, of_hidden), w_.offset(direction, block, of_hidden),
              a.scales + row * a.scale_stride, a.scale_stride};
    else
      return {};
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

  // Converts the input and the previous hidden values of a step to elements, [batch, step_inputs_ + hiddens], and
  // writes their scales, [batch, 2].
  void convert(int64_t direction, const Step& step, Range batch, T* converted, T* scales) const {
    for (int64_t b = batch.begin; b < batch.end; ++b) {
      T* target = converted + b * converted_row();
      if (step_inputs_ > 0)
        convert_row<Factors>(p_.input + (step.first_row + b) * s_.input_size, s_.input_size, target, scales + 2 * b);
      convert_row<Factors>(previous(direction, step, b), s_.output_size, target + step_inputs_ * Factors::kWidth,
                           scales + 2 * b + 1);
    }
  }
  int64_t converted_row() const { return (step_inputs_ + w_.hiddens) * Factors::kWidth; }

  bool in_place() const { return !kFrozen && plan_.weights == WeightUse::kInPlace; }
  bool packs_in_step() const { return !kFrozen && plan_.weights == WeightUse::kPackedInStep; }

  // The buffers of one thread.
  struct ThreadBuffers {
    T* weights;          // the packed weights of a block; null if weights are read in place
    T* widened;          // scratch for weights that are not packed as they are stored
    const T* converted;  // [batch, converted_row()], as convert() leaves them; null if nothing is converted
    const T* scales;     // [batch, 2], the same
    const T* hidden;     // [batch, output_size], as replace_states() leaves them; null if it replaced no states
  };

  // Computes a thread's part of all steps of a direction.
  void run_direction(int64_t direction, const ThreadWork& work) {
    const Range blocks = share(w_.blocks, work.rank, work.team_size);
    Barrier& team = teams_[direction];
    Scratch<T> packed(packs_in_step() ? w_.block_size : 0), widened(packs_in_step() ? w_.widened_size() : 0);
    const int64_t converted_rows = kConverted && !in_place() ? s_.steps.batch : 0;
    Scratch<T> converted(converted_rows * converted_row()), scales(kScaled<Factors> ? converted_rows * 2 : 0);
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
      if constexpr (kConverted)
        if (!in_place()) convert(direction, step, all, converted.data(), scales.data());
      serpentine(blocks, 1, index, [&](int64_t block, int64_t next) {
        T* weights = in_place() ? nullptr : packs_in_step() ? packed.data() : w_.packed(direction, block);
        const ThreadBuffers buffers = {weights, widened.data(), converted.data(), scales.data(),
                                       replaced ? hidden.data() : nullptr};
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
      if constexpr (!kFrozen)
        for_each_tile<kMaxRows>(g.rows, [&](auto tile_rows, int64_t row) {
          add_in_place<tile_rows()>(g, row, sums + row * kSums * kUnits, kUnits);
        });
    } else {
      // All rows are multiplied by the weights of a gate before those of the next, while the weights are in the cache.
      int packed = g.packs ? 0 : Cell::kGates;
      for (int gate = 0; gate < Cell::kGates; ++gate)
        for_each_tile<kPanelRows>(g.rows, [&](auto tile_rows, int64_t row) {
          for_gates_at_once<tile_rows(), kWidth>([&](auto first, auto gates) {
            if (gate != first) return;
            if constexpr (!kFrozen)
              for (; packed < first + gates; ++packed)
                w_.template pack_gate<kUnits>(g.direction, g.block, packed, g.buffers.widened, g.buffers.weights);
            if (first + gates == Cell::kGates) prefetch(g, row, tile_rows());
            add<tile_rows(), kWidth, gates()>(g, first, row, sums + row * kSums * kUnits);
          });
        });
    }
    finish<kUnits>(g, sums);
  }

  // Calls body(gate, gates), both integral constants, for the gates that a tile of kRows rows computes at once, in
  // order.
  template <int kRows, int kWidth, typename Body>
  static FUSED_RNN_INLINE void for_gates_at_once(const Body& body) {
    constexpr int kAtOnce = smaller(kGatesAtOnce<kRows, kWidth>, Cell::kGates);
    unroll<divide_up(Cell::kGates, kAtOnce)>([&](auto i) FUSED_RNN_INLINE {
      constexpr int kFirst = i * kAtOnce;
      body(std::integral_constant<int, kFirst>(),
           std::integral_constant<int, smaller(kAtOnce, Cell::kGates - kFirst)>());
    });
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

  // Initialises the sums with the biases and, if it was computed before the first step, the input's part, which of a
  // frozen layer has the biases already.
  template <int kWidth>
  void start(const Group& g, T* sums) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    start_with_biases<kUnits>(g.direction, g.block, g.rows, sums);
    if (!plan_.input_first) return;
    const T* input_part = input_sums(g.direction) + g.row * kSums * s_.hidden_size + g.block * w_.block_units;
    for (int64_t i = 0; i < g.rows * kSums; ++i) {
      if (i % kSums >= Cell::kGates) continue;
      for (int64_t unit = 0; unit < w_.units(g.block); ++unit) {
        const T before = kFrozen ? T(0) : sums[i * kUnits + unit];
        sums[i * kUnits + unit] = before + input_part[i * s_.hidden_size + unit];
      }
    }
  }

  template <int64_t kUnits>
  void start_with_biases(int64_t direction, int64_t block, int64_t rows, T* sums) {
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(sums + row * kSums * kUnits, w_.bias(direction, block), kSums * kUnits * sizeof(T));
  }

  // Adds input times weight_ih and previous hidden values times weight_hh to the sums of kGates gates, from `gate` on.
  // The tiles prefetch the weights that are needed next, each a part of them.
  template <int kRows, int kWidth, int kGates>
  void add(const Group& g, int gate, int64_t row, T* sums) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    const int64_t of_input = w_.inputs * kUnits, of_hidden = w_.hiddens * kUnits;
    const auto next =
        w_.prefetch_after(g.direction, g.block, gate + kGates, kGates, g.next, g.buffers.weights, kUnits, row / kRows);
    if (step_inputs_ > 0) {
      const Activations a = activations(g, row, p_.input + (g.row + row) * s_.input_size, s_.input_size, 0);
      multiply_gates<kRows, kWidth, kGates, Factors>(
          a.data, a.stride, g.buffers.weights + gate * of_input, of_input, w_.inputs, next.input, gate,
          {sums, kSums * kUnits, kSumsOf<Cell>.input}, scales(g.direction, g.block, false, a, 0), w_.block_units);
    }
    const Activations a = activations(g, row, g.previous + row * g.previous_row, g.previous_row, 1);
    multiply_gates<kRows, kWidth, kGates, Factors>(
        a.data, a.stride, g.buffers.weights + Cell::kGates * of_input + gate * of_hidden, of_hidden, w_.hiddens,
        next.hidden, gate, {sums, kSums * kUnits, kSumsOf<Cell>.hidden}, scales(g.direction, g.block, true, a, 0),
        w_.block_units);
  }

  // Returns input values (`matrix` 0) or hidden values (1) from a row of a group on: those at `values`, or what they
  // were converted to.
  Activations activations(const Group& g, int64_t row, const T* values, int64_t stride, int64_t matrix) const {
    if constexpr (!kConverted) return {values, stride, nullptr, 0};
    const int64_t b = g.batch + row;
    return {g.buffers.converted + b * converted_row() + matrix * step_inputs_ * Factors::kWidth, converted_row(),
            g.buffers.scales + 2 * b + matrix, 2};
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
  const int64_t
      step_inputs_;         // the depth of weight_ih in each step; 0 if the input is multiplied before the first step
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
