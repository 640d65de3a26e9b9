// The forward loop over the steps of a recurrent layer. The products, activations and states of a step are fused: only
// final values are stored to memory. The cell is a struct of cells/.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cells/cells.h"
#include "cpu/kit/gemm.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/cell_step.h"
#include "cpu/recurrent/elements.h"
#include "cpu/recurrent/gate_sums.h"
#include "cpu/recurrent/hidden_states.h"
#include "cpu/recurrent/packed_weights.h"
#include "cpu/recurrent/plan.h"
#include "cpu/recurrent/schedule.h"
#include "cpu/recurrent/transposed_sums.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// Factors is the type of the elements that are multiplied. If kFrozen, the layer is frozen: its weights were packed
// before the call.
template <typename Cell, typename T, typename Factors = Values<T>, bool kFrozen = false>
class ForwardLoop {
 public:
  using Stored = typename std::conditional_t<kFrozen, Values<T>, Factors>::Stored;
  explicit ForwardLoop(const RecurrentForwardParams<T, Stored>& params)
      : p_(params),
        s_(params.sizes),
        plan_(kFrozen ? plan_frozen(cells::describe<Cell>(), params.sizes, params.frozen.block_units, Factors::kTerms)
                      : plan_forward(cells::describe<Cell>(), params.sizes, kRegisters<T>)),
        w_(plan_, params),
        step_inputs_(plan_.input_first ? 0 : w_.inputs),
        input_(reads_widened_input() ? s_.steps.rows() * s_.input_size : 0),
        sums_(plan_.input_first && (kWidens || !params.gates) ? s_.directions * s_.steps.rows() * kSums * s_.hidden_size
                                                              : 0),
        states_(params),
        unprojected_(w_.projected ? s_.directions * s_.steps.batch * s_.hidden_size : 0),
        columns_(transposes() ? s_.directions * panels() * w_.depth * kPanel<T> : 0),
        widened_(plan_.threads, kFrozen ? 0 : w_.widened_size()),
        converted_(plan_.threads, converted_rows() * converted_row()),
        scales_(plan_.threads, kScaled<Factors> ? converted_rows() * 2 : 0),
        replaced_(plan_.threads, p_.resets.begins ? s_.steps.batch * s_.output_size : 0) {}

  void run() {
    if (reads_widened_input()) widen_input();
    if (plan_.input_first) kFrozen ? multiply_packed_input() : multiply_input();
    parallel(plan_.threads, [&](int64_t thread, int64_t count) {
      if constexpr (!kFrozen) {
        w_.pack(thread, count, widened_.of(thread));
        if (transposes()) transpose_rows(thread, count);
        all_threads_.wait(count, thread);
      }
      const int64_t bytes = w_.blocks * w_.block_size * static_cast<int64_t>(sizeof(T));
      const ThreadWork work = work_of_thread(s_, bytes, thread, count);
      for (int64_t d = work.first_direction; d < s_.directions; d += work.direction_stride)
        run_direction(d, work, thread);
    });
  }

 private:
  static_assert(Cell::kStates <= 2, "the loops keep h and at most one cell state");
  static constexpr int kSums = Cell::kSums;
  static constexpr bool kConverted = kConverts<Factors>;
  // Whether the input has to be widened before it is read as T.
  static constexpr bool kWidens = !std::is_same_v<T, Stored>;
  // Whether it is read so: packed weights are multiplied by it as it is stored.
  bool reads_widened_input() const { return kWidens && (in_place() || plan_.input_first); }
  // How many rows' sums are kept in the first-level cache while the weights of a block are read once.
  static constexpr int64_t kGroupRows = 48;

  void widen_input() {
    constexpr int64_t kWorthAThread = 1 << 15;
    const int64_t size = s_.steps.rows() * s_.input_size;
    parallel(smaller(s_.threads, 1 + size / kWorthAThread), [&](int64_t thread, int64_t count) {
      const Range mine = share(size, thread, count, kLanes<T>);
      widen_values(p_.input + mine.begin, mine.size(), input_.data() + mine.begin);
    });
  }

  // Returns the input of a row as T, for the plans that read it so.
  const T* input(int64_t row) {
    if constexpr (kWidens)
      return input_.data() + row * s_.input_size;
    else
      return p_.input + row * s_.input_size;
  }

  // Computes input times weight_ih for all steps, into the array of gates if it is of that type, which saves memory.
  void multiply_input() {
    const int64_t rows = s_.steps.rows(), columns = Cell::kGates * s_.hidden_size;
    Scratch<T> widened(w_.ih(0).scratch(columns));
    for (int64_t d = 0; d < s_.directions; ++d)
      gemm<T>({.rows = rows,
               .columns = columns,
               .depth = s_.input_size,
               .a = {input(0), s_.input_size, 1},
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
      ThreadScratch<T> all_converted(s_.threads, kConverted ? kGroupRows * elements : 0);
      parallel(s_.threads, [&](int64_t thread, int64_t count) {
        const Range mine = share(s_.directions * w_.blocks, thread, count);
        T* converted = all_converted.of(thread);
        T scales[kGroupRows];
        for (int64_t i = mine.begin; i < mine.end; ++i)
          for (int64_t first = 0; first < rows; first += kGroupRows) {
            const int64_t here = smaller(rows - first, kGroupRows), d = i / w_.blocks, block = i % w_.blocks;
            if constexpr (kConverted)
              for (int64_t row = 0; row < here; ++row)
                convert_row<Factors>(input(first + row), s_.input_size, converted + row * elements, scales + row);
            const Activations a = {kConverted ? converted : input(first), kConverted ? elements : s_.input_size, scales,
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
    T* all = sums_.data();
    if constexpr (!kWidens)
      if (p_.gates) all = p_.gates;
    return all + direction * s_.steps.rows() * kSums * s_.hidden_size;
  }

  // Converts the input and the previous hidden values of a batch row before a step to elements at `target`, of
  // converted_row() values, and writes their scales, if they have any.
  void convert(int64_t direction, const Step& step, int64_t b, T* target, T* scales) {
    const auto convert_values = [](const auto* source, int64_t size, T* to, T* scale) {
      if constexpr (kConverted)
        convert_row<Factors>(source, size, to, scale);
      else
        std::memcpy(to, source, static_cast<size_t>(size) * sizeof(T));
    };
    if (step_inputs_ > 0)
      convert_values(p_.input + (step.first_row + b) * s_.input_size, s_.input_size, target, scales);
    convert_values(states_.previous(direction, step, b), s_.output_size, target + step_inputs_ * Factors::kWidth,
                   scales + 1);
  }
  int64_t converted_row() const { return (step_inputs_ + w_.hiddens) * Factors::kWidth; }

  // Transposes a thread's share of what the first step multiplies, which is the only one, into columns_.
  void transpose_rows(int64_t thread, int64_t count) {
    T *const staged = converted_.of(thread), *const scales = scales_.of(thread);
    const Range mine = share(s_.directions * panels(), thread, count);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t direction = i / panels(), first = i % panels() * kPanel<T>;
      const Step step = step_at(s_.steps, direction, 0);
      for (int64_t row = 0; row < kPanel<T>; ++row)
        if (first + row < step.rows)
          convert(direction, step, first + row, staged + row * w_.depth, scales);
        else
          std::memset(staged + row * w_.depth, 0, static_cast<size_t>(w_.depth) * sizeof(T));
      pack_panel<T>({staged, 1, w_.depth}, w_.depth, kPanel<T>, columns(direction, first));
    }
  }
  // The number of panels that hold the batch rows as columns, and the panel of a row.
  int64_t panels() const { return divide_up(s_.steps.batch, kPanel<T>); }
  T* columns(int64_t direction, int64_t b) {
    return columns_.data() + (direction * panels() + b / kPanel<T>)*w_.depth * kPanel<T>;
  }

  bool in_place() const { return !kFrozen && plan_.weights == WeightUse::kInPlace; }
  bool transposes() const { return !kFrozen && plan_.weights == WeightUse::kTransposed; }
  bool packed() const { return kFrozen || plan_.weights == WeightUse::kPackedBefore; }
  // How many rows a thread converts at a time.
  int64_t converted_rows() const { return transposes() ? kPanel<T> : kConverted && packed() ? s_.steps.batch : 0; }

  // The buffers of one thread.
  struct ThreadBuffers {
    T* weights;          // the packed weights of a block; null unless weights are packed
    T* widened;          // scratch for weights that are not multiplied as they are stored
    const T* converted;  // [batch, converted_row()], as convert() leaves them; not read if nothing is converted
    const T* scales;     // [batch, 2], the same
    const T* hidden;     // [batch, output_size], as states_.replace() leaves them; null if it replaced none
  };

  // Computes a thread's part of all steps of a direction.
  void run_direction(int64_t direction, const ThreadWork& work, int64_t thread) {
    const Range blocks = share(w_.blocks, work.rank, work.team_size);
    Barrier& team = teams_[direction];
    T *const converted = converted_.of(thread), *const scales = scales_.of(thread),
             *const hidden = replaced_.of(thread);
    const Range units = intersect({blocks.begin * w_.block_units, blocks.end * w_.block_units}, {0, s_.hidden_size});
    for (int64_t index = 0; index < s_.steps.time; ++index) {
      const Step step = step_at(s_.steps, direction, index);
      const Range all = intersect(work.batch, {0, step.rows});
      const bool replaced = states_.replace(direction, step, all, units, hidden);
      // If states are replaced, the hidden values before the step lie in one array for all rows.
      const int64_t previous_rows = replaced ? 0 : step.previous_rows;
      const Range continuing = intersect(work.batch, {0, previous_rows});
      const Range starting = intersect(work.batch, {previous_rows, step.rows});
      if constexpr (kConverted)
        for (int64_t b = all.begin; packed() && b < all.end; ++b)
          convert(direction, step, b, converted + b * converted_row(), scales + 2 * b);
      serpentine(blocks, 1, index, [&](int64_t block, int64_t next) {
        T* weights = packed() ? w_.packed(direction, block) : nullptr;
        const ThreadBuffers buffers = {weights, widened_.of(thread), converted, scales, replaced ? hidden : nullptr};
        rows(direction, step, block, next, buffers, continuing, true);
        rows(direction, step, block, next, buffers, starting, false);
      });
      team.wait(work.team_size, work.rank);
      if (w_.projected) {
        project(direction, step, work);
        team.wait(work.team_size, work.rank);
      }
    }
    states_.copy_last(direction, work);
  }

  // Computes one step of a block of units, for batch rows that all have, or all lack, a previous step.
  void rows(int64_t direction, const Step& step, int64_t block, int64_t next, const ThreadBuffers& buffers, Range batch,
            bool has_previous) {
    const int64_t previous_row = has_previous ? states_.hidden_row() : s_.output_size;
    w_.for_width_of(block, [&](auto vectors) {
      const int64_t most = transposes() ? kPanel<T> : kGroupRows;
      for (int64_t first = batch.begin; first < batch.end; first += most)
        group<vectors()>(
            {direction, block, next, buffers, step.t, first, smaller(batch.end - first, most), step.first_row + first,
             buffers.hidden ? buffers.hidden + first * s_.output_size : states_.previous(direction, step, first),
             previous_row});
    });
  }

  // A group of batch rows of a step, and a block of units.
  struct Group {
    int64_t direction, block;
    int64_t next;  // the block that is computed after it
    ThreadBuffers buffers;
    int64_t t;
    int64_t batch, rows;   // the first batch row, and the number of rows
    int64_t row;           // the index of the first row in arrays of all steps' rows
    const T* previous;     // hidden values of the previous step, from the first row on
    int64_t previous_row;  // their row stride
  };

  template <int kWidth>
  void group(const Group& g) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    alignas(64) T sums[kGroupRows * kSums * kUnits];
    if (!transposes()) start<kWidth>(g, sums);
    if (in_place()) {
      if constexpr (!kFrozen)
        for_each_tile<kMaxRows>(g.rows, [&](auto tile_rows, int64_t row) {
          add_in_place<tile_rows()>(g, row, sums + row * kSums * kUnits, kUnits);
        });
    } else if (transposes()) {
      if constexpr (!kFrozen)
        g.rows > kLanes<T> ? multiply_transposed<kWidth, 2>(g, sums) : multiply_transposed<kWidth, 1>(g, sums);
    } else {
      // All rows are multiplied by the weights of a gate before those of the next, while the weights are in the cache.
      for (int gate = 0; gate < Cell::kGates; ++gate)
        for_each_tile<kPanelRows>(g.rows, [&](auto tile_rows, int64_t row) {
          for_gates_at_once<tile_rows(), kWidth>([&](auto first, auto gates) {
            if (gate != first) return;
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
        w_.prefetch_after(g.direction, gate + kGates, kGates, g.next, g.buffers.weights, kUnits, row / kRows);
    if (step_inputs_ > 0) {
      const Activations a = activations(g, row, kConverted ? nullptr : input(g.row + row), s_.input_size, 0);
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

  // Sets the sums of a group, [rows, kSums, kUnits], with the weights read in place and the batch rows as kColumns
  // vectors of columns: the sums are computed as [kSums, kUnits, kPanel] and then transposed.
  template <int kWidth, int kColumns>
  void multiply_transposed(const Group& g, T* sums) {
    constexpr int64_t kUnits = kWidth * kLanes<T>, kSize = kUnits * kPanel<T>;
    alignas(64) T transposed[kSums * kSize];
    fill_rows(w_.bias(g.direction, g.block), kSums * kUnits, transposed);
    prefetch(g, 0, g.rows);
    const StoredMatrix<T> ih = w_.ih(g.direction), hh = w_.hh(g.direction);
    const T* columns = this->columns(g.direction, g.batch);
    const int64_t count = w_.units(g.block), inputs = w_.inputs;
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      const bool last = gate + 1 == Cell::kGates;
      const T* of_hidden = hh.row_address(w_.first_row(g.block, gate));
      const T* of_next = ih.row_address(last ? w_.first_row(g.next, 0) : w_.first_row(g.block, gate + 1));
      if (inputs > 0)
        multiply_columns<kColumns, Factors>(w_.gate_rows(ih, g.block, gate, g.buffers.widened), count, inputs, columns,
                                            of_hidden, transposed + gate * kSize);
      multiply_columns<kColumns, Factors>(w_.gate_rows(hh, g.block, gate, g.buffers.widened), count, w_.depth - inputs,
                                          columns + inputs * kPanel<T>, of_next,
                                          transposed + Cell::hidden_sum(gate) * kSize);
    }
    for (int sum = 0; sum < kSums; ++sum)
      transpose_panel<kUnits>(transposed + sum * kSize, sums + sum * kUnits, kSums * kUnits);
  }

  template <int kRows>
  void add_in_place(const Group& g, int64_t row, T* sums, int64_t width) {
    if constexpr (kMayPrefetch<kRows>)
      if (Cell::kGates * s_.hidden_size * (s_.input_size + s_.output_size) > kMostCachedWeights)
        return add_in_place<kRows, true>(g, row, sums, width);
    add_in_place<kRows, false>(g, row, sums, width);
  }
  template <int kRows, bool kPrefetches>
  void add_in_place(const Group& g, int64_t row, T* sums, int64_t width) {
    const int64_t unit = g.block * w_.block_units, hidden = s_.hidden_size;
    w_.ih(g.direction).as_stored([&](const auto* weight) {
      dot_gates<kSums, kRows, kPrefetches, input_sum>(input(g.row + row), s_.input_size, weight + unit * s_.input_size,
                                                      Cell::kGates, hidden, s_.input_size, w_.units(g.block), sums,
                                                      width);
    });
    w_.hh(g.direction).as_stored([&](const auto* weight) {
      dot_gates<kSums, kRows, kPrefetches, Cell::hidden_sum>(g.previous + row * g.previous_row, g.previous_row,
                                                             weight + unit * s_.output_size, Cell::kGates, hidden,
                                                             s_.output_size, w_.units(g.block), sums, width);
    });
  }

  CellPointers<T, Stored> pointers_at(const Group& g, int64_t r, int64_t lane) {
    const int64_t hidden = s_.hidden_size, unit = g.block * w_.block_units + lane, row = g.row + r;
    const int64_t saved = g.direction * s_.steps.rows() + row, state = g.direction * s_.steps.batch + g.batch + r;
    return {.previous = g.previous + r * g.previous_row + unit,
            .hidden = w_.projected ? unprojected_.data() + state * hidden + unit
                                   : states_.hidden(g.direction, g.t, g.row - g.batch, g.batch + r) + unit,
            .output = kWidens && !w_.projected ? states_.output(g.direction, row, 0) + unit : nullptr,
            .cell = p_.c_n ? p_.c_n + state * hidden + unit : nullptr,
            .gates = p_.gates ? p_.gates + saved * kSums * hidden + unit : nullptr,
            .cells = p_.cells ? p_.cells + saved * hidden + unit : nullptr,
            .hidden_size = hidden,
            .units = smaller(s_.hidden_size - unit, kLanes<T>)};
  }

  // Computes output = hidden values times weight_hr, for this thread's columns.
  void project(int64_t direction, const Step& step, const ThreadWork& work) {
    const Range columns = share(s_.output_size, work.rank, work.team_size, kPanel<T>);
    const Range batch = intersect(work.batch, {0, step.rows});
    for (int64_t column = columns.begin; column < columns.end; column += kPanel<T>)
      for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
        const int64_t b = batch.begin + offset, left = smaller(columns.end - column, kPanel<T>);
        T* const hidden = states_.hidden(direction, step.t, step.first_row, b) + column;
        multiply_panel<T, tile_rows()>(unprojected_.data() + (direction * s_.steps.batch + b) * s_.hidden_size,
                                       s_.hidden_size, 1, w_.projection(direction) + column * s_.hidden_size, kPanel<T>,
                                       s_.hidden_size, hidden, states_.hidden_row(), left, false);
        states_.round_to_output(direction, step, {b, b + tile_rows()}, {column, column + left});
      });
  }

  const RecurrentForwardParams<T, Stored>& p_;
  const RecurrentSizes& s_;
  const ForwardPlan plan_;
  PackedWeights<Cell, T, Factors> w_;
  const int64_t
      step_inputs_;   // the depth of weight_ih in each step; 0 if the input is multiplied before the first step
  Scratch<T> input_;  // [rows, input_size]: the input as T, if it has to be widened
  Scratch<T> sums_;   // [directions, rows, kSums * hidden]: the input's part of the sums
  HiddenStates<T, Stored> states_;
  Scratch<T> unprojected_;  // [directions, batch, hidden]: hidden values before the projection
  Scratch<T> columns_;      // [directions, panels, depth, kPanel]: the rows as columns, if weights are transposed
  ThreadScratch<T> widened_, converted_, scales_, replaced_;  // see ThreadBuffers
  Barrier all_threads_, teams_[2];
};

}  // namespace

namespace CPU_CAPABILITY {

template <typename Cell, typename T, typename Stored>
void recurrent_forward(const RecurrentForwardParams<T, Stored>& params) {
  if constexpr (std::is_same_v<T, Stored>)
    ForwardLoop<Cell, T>(params).run();
  else if constexpr (Pairs::kBuilt)
    ForwardLoop<Cell, T, Pairs>(params).run();
}

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
