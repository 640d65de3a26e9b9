// The forward loop over the steps of a recurrent layer: products, activations and states of a step in one pass, with
// nothing but finished values stored. The cell is a parameter; see lstm_kernel.cpp and gru_kernel.cpp.

#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/gate_weights.h"
#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "cpu/recurrent.h"
#include "cpu/scratch.h"
#include "cpu/tile.h"
#include "params/recurrent.h"

namespace fused_rnn::cpu {
namespace {

// Where a cell finds and leaves the values of one vector of units of a row.
template <typename T>
struct CellPlace {
  const T* previous;  // hidden values of the step before
  T* hidden;          // hidden values of this step
  T* cell;            // cell values, stepped in place (LSTM only)
  T* gates;           // gate stride hidden_size; null if they are not kept
  T* cells;           // null likewise
  int64_t hidden_size;
  int64_t units;  // lanes in use
};

template <typename Cell, typename T>
class ForwardLoop {
 public:
  explicit ForwardLoop(const RecurrentForward<T>& params)
      : p_(params),
        s_(params.sizes),
        direct_(reads_directly(s_)),
        hoisted_(!direct_ && s_.steps.batch < kFusedRows),
        single_(!direct_ && s_.steps.time == 1),
        depth_(s_.output_size + (hoisted_ || direct_ ? 0 : s_.input_size)),
        block_units_(s_.threads > 1 && s_.hidden_size < 4 * s_.threads * kPanel<T> ? kLanes<T> : kPanel<T>),
        blocks_(divide_up(s_.hidden_size, block_units_)),
        weights_(direct_ || single_ ? 0 : s_.directions * blocks_ * block_size()),
        biases_(s_.directions * blocks_ * 4 * block_units_),
        sums_(hoisted_ && !params.gates ? s_.directions * s_.steps.rows() * 4 * s_.hidden_size : 0),
        projection_(projected() ? s_.directions * divide_up(s_.output_size, kPanel<T>) * kPanel<T> * s_.hidden_size
                                : 0),
        unprojected_(projected() ? s_.directions * s_.steps.batch * s_.hidden_size : 0) {}

  void run() {
    if (hoisted_) multiply_input();
    const int64_t work = s_.steps.batch * s_.hidden_size * Cell::kGates * (s_.output_size + s_.input_size);
    parallel(useful_threads(s_, work), [&](int64_t thread, int64_t count) {
      pack(thread, count);
      everyone_.wait(count);
      const int64_t bytes = blocks_ * block_size() * static_cast<int64_t>(sizeof(T));
      const Member member = assign(s_, bytes, thread, count);
      for (int64_t d = member.first_direction; d < s_.directions; d += member.direction_stride) walk(d, member);
    });
  }

 private:
  // From so many batch rows on, the input's product is part of the step; below, it is one product over all steps.
  static constexpr int64_t kFusedRows = 4;
  // Rows whose sums are kept while weights pass by.
  static constexpr int64_t kGroupRows = 48;

  // Whether the weights are read as they lie: packing repays only if enough rows use it, the more in several steps, for
  // which all is packed first; and the more the longer the sums are (a short sum costs little more than its last
  // additions across a vector). Measured; see benchmarks/NOTES.md.
  static bool reads_directly(const RecurrentSizes& sizes) {
    if (sizes.steps.time == 1) return sizes.steps.batch <= 2 * kMaxRows;
    const int64_t batch = sizes.steps.batch < 4 ? 4 : sizes.steps.batch;
    const int64_t depth = sizes.input_size + sizes.output_size;
    const int64_t most = depth < 128 ? 4 : depth > 512 ? 16 : depth / 32;
    return sizes.steps.time * batch <= most;
  }

  bool projected() const { return p_.weights[0].hr != nullptr; }

  // sums[direction] = input times weight_ih, over all steps; in the array of gates if that is kept anyway.
  void multiply_input() {
    const int64_t rows = s_.steps.rows();
    for (int64_t d = 0; d < s_.directions; ++d)
      gemm<T>({.rows = rows,
               .columns = Cell::kGates * s_.hidden_size,
               .depth = s_.input_size,
               .a = {p_.input, s_.input_size, 1},
               .b = {p_.weights[d].ih, 1, s_.input_size},
               .c = input_sums(d),
               .c_row = 4 * s_.hidden_size},
              s_.threads);
  }

  T* input_sums(int64_t direction) {
    return (p_.gates ? p_.gates : sums_.data()) + direction * s_.steps.rows() * 4 * s_.hidden_size;
  }
  int64_t block_size() const { return Cell::kGates * depth_ * block_units_; }
  T* packed(int64_t direction, int64_t block) { return weights_.data() + (direction * blocks_ + block) * block_size(); }
  T* bias(int64_t direction, int64_t block) {
    return biases_.data() + (direction * blocks_ + block) * 4 * block_units_;
  }
  T* packed_projection(int64_t direction) {
    return projection_.data() + direction * divide_up(s_.output_size, kPanel<T>) * kPanel<T> * s_.hidden_size;
  }
  int64_t units(int64_t block) const { return smaller(s_.hidden_size - block * block_units_, block_units_); }

  // Calls body(std::integral_constant<int, vectors>) with the number of vectors that a block's units fill.
  template <typename Body>
  void for_width_of(int64_t block, const Body& body) const {
    units(block) > kLanes<T> ? body(std::integral_constant<int, 2>()) : body(std::integral_constant<int, 1>());
  }

  // Packs this thread's share of the weights and biases.
  void pack(int64_t thread, int64_t count) {
    const Range mine = share(s_.directions * blocks_, thread, count);
    for (int64_t i = mine.begin; i < mine.end; ++i)
      for_width_of(i % blocks_, [&](auto width) { pack_block<width * kLanes<T>>(i / blocks_, i % blocks_); });
    if (!projected()) return;
    const int64_t panels = divide_up(s_.output_size, kPanel<T>);
    const Range ours = share(s_.directions * panels, thread, count);
    for (int64_t i = ours.begin; i < ours.end; ++i) {
      const int64_t d = i / panels, column = i % panels * kPanel<T>, left = s_.output_size - column;
      pack_panel<T>({p_.weights[d].hr + column * s_.hidden_size, 1, s_.hidden_size}, s_.hidden_size,
                    smaller(left, kPanel<T>), packed_projection(d) + column * s_.hidden_size);
    }
  }

  // Packs a block's weights as [gates, depth, kWidth], and its biases as [4, kWidth].
  template <int64_t kWidth>
  void pack_block(int64_t direction, int64_t block) {
    const int64_t unit = block * block_units_, count = units(block);
    const auto& w = p_.weights[direction];
    Cell::pack_bias(w, s_.hidden_size, unit, count, bias(direction, block), kWidth);
    if (direct_ || single_) return;
    for (int gate = 0; gate < Cell::kGates; ++gate) pack_gate<kWidth>(direction, block, gate, packed(direction, block));
  }
  template <int64_t kWidth>
  void pack_gate(int64_t direction, int64_t block, int gate, T* block_weights) {
    const int64_t count = units(block), inputs = depth_ - s_.output_size;
    const int64_t row = gate * s_.hidden_size + block * block_units_;
    const auto& w = p_.weights[direction];
    T* target = block_weights + gate * depth_ * kWidth;
    pack_panel<T, kWidth>({w.ih + row * s_.input_size, 1, s_.input_size}, inputs, count, target);
    pack_panel<T, kWidth>({w.hh + row * s_.output_size, 1, s_.output_size}, s_.output_size, count,
                          target + inputs * kWidth);
  }

  // A team member's part in all steps of a direction.
  void walk(int64_t direction, const Member& member) {
    const Range blocks = share(blocks_, member.index, member.team);
    Barrier& team = teams_[direction];
    Scratch<T> own(single_ ? block_size() : 0);
    for (int64_t index = 0; index < s_.steps.time; ++index) {
      const Step step = step_at(s_.steps, direction, index);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        T* weights = direct_ ? nullptr : single_ ? own.data() : packed(direction, block);
        rows(direction, step, block, weights, intersect(member.batch, {0, step.previous_rows}), true);
        rows(direction, step, block, weights, intersect(member.batch, {step.previous_rows, step.rows}), false);
      }
      team.wait(member.team);
      if (projected()) {
        project(direction, step, member);
        team.wait(member.team);
      }
    }
    copy_last(direction, member);
  }

  // One step of the units of a block, for batch rows that all have, or all have not, a step before.
  void rows(int64_t direction, const Step& step, int64_t block, T* weights, Range batch, bool has_previous) {
    const int64_t width = s_.directions * s_.output_size;
    const T* previous = has_previous ? p_.output + step.previous_first * width + direction * s_.output_size
                                     : p_.h0 + direction * s_.steps.batch * s_.output_size;
    const int64_t previous_row = has_previous ? width : s_.output_size;
    for_width_of(block, [&](auto vectors) {
      for (int64_t first = batch.begin; first < batch.end; first += kGroupRows)
        group<vectors()>({direction, block, weights, single_ && first == batch.begin, first,
                          smaller(batch.end - first, kGroupRows), step.first_row + first,
                          previous + first * previous_row, previous_row});
    });
  }

  // Some rows of a step and a block of units.
  struct Group {
    int64_t direction, block;
    T* weights;           // packed, unless they are read directly
    bool packs;           // whether they are packed here, just before they are used
    int64_t batch, rows;  // the first batch row, and how many
    int64_t row;          // the first in arrays of all rows
    const T* previous;    // hidden values of the step before, from the first row on
    int64_t previous_row;
  };

  template <int kWidth>
  void group(const Group& g) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    alignas(64) T sums[kGroupRows * 4 * kUnits];
    start<kWidth>(g, sums);
    if (direct_) {
      for_each_tile<kMaxRows>(g.rows, [&](auto tile_rows, int64_t row) {
        add_directly<tile_rows()>(g, row, sums + row * 4 * kUnits, kUnits);
      });
    } else {
      // All rows meet the weights of a gate before those of the next, while these are near.
      int packed = g.packs ? 0 : Cell::kGates;
      for (int gate = 0; gate < Cell::kGates; ++gate)
        for_each_tile<kPanelRows>(g.rows, [&](auto tile_rows, int64_t row) {
          constexpr int kAtOnce = smaller(kGatesAtOnce<tile_rows(), kWidth>, Cell::kGates);
          constexpr int kRest = Cell::kGates % kAtOnce == 0 ? kAtOnce : Cell::kGates % kAtOnce;
          if (gate % kAtOnce != 0) return;
          for (; packed < smaller(gate + kAtOnce, Cell::kGates); ++packed)
            pack_gate<kUnits>(g.direction, g.block, packed, g.weights);
          if (gate + kAtOnce >= Cell::kGates) prefetch(g, row, tile_rows());
          if (gate + kAtOnce <= Cell::kGates)
            add<tile_rows(), kWidth, kAtOnce>(g, gate, row, sums + row * 4 * kUnits);
          else
            add<tile_rows(), kWidth, kRest>(g, gate, row, sums + row * 4 * kUnits);
        });
    }
    finish<kUnits>(g, sums);
  }

  // Turns sums into states. Flattened: calls would keep one vector from being begun while another waits.
  template <int64_t kUnits>
  __attribute__((flatten)) void finish(const Group& g, const T* sums) {
    for (int64_t row = 0; row < g.rows; ++row)
      for (int64_t lane = 0; lane < units(g.block); lane += kLanes<T>)
        Cell::finish(sums + row * 4 * kUnits + lane, kUnits, place_at(g, row, lane));
  }

  // What is kept goes to lines that are far away when the sums are done, unless they are asked for before.
  void prefetch(const Group& g, int64_t row, int64_t rows) const {
    if (!p_.gates) return;
    const int64_t hidden = s_.hidden_size, unit = g.block * block_units_;
    const int64_t from = g.direction * s_.steps.rows() + g.row + row;
    for (int64_t r = from; r < from + rows; ++r) {
      for (int64_t gate = 0; gate < 4; ++gate) __builtin_prefetch(p_.gates + (r * 4 + gate) * hidden + unit, 1);
      if (p_.cells) __builtin_prefetch(p_.cells + r * hidden + unit, 1);
    }
  }

  // What the gates' sums start with: the biases, and the input's part if that is known.
  template <int kWidth>
  void start(const Group& g, T* sums) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    const T* bias_of_block = bias(g.direction, g.block);
    for (int64_t row = 0; row < g.rows; ++row)
      std::memcpy(sums + row * 4 * kUnits, bias_of_block, 4 * kUnits * sizeof(T));
    if (!hoisted_) return;
    const T* known = input_sums(g.direction) + g.row * 4 * s_.hidden_size + g.block * block_units_;
    for (int64_t i = 0; i < g.rows * 4; ++i) {
      if (i % 4 >= Cell::kGates) continue;
      for (int64_t unit = 0; unit < units(g.block); ++unit) sums[i * kUnits + unit] += known[i * s_.hidden_size + unit];
    }
  }

  // Adds input times weight_ih and previous hidden values times weight_hh to kGates gates' sums, from `gate` on. The
  // first tiles ask for the weights that come next.
  template <int kRows, int kWidth, int kGates>
  void add(const Group& g, int gate, int64_t row, T* sums) {
    constexpr int64_t kUnits = kWidth * kLanes<T>;
    const int64_t stride = depth_ * kUnits, inputs = depth_ - s_.output_size;
    const T* weights = g.weights + gate * stride;
    const auto [next_inputs, next_hidden] =
        next_weights<kUnits>(g, gate + kGates, weights, kGates * stride, row / kRows);
    if (inputs > 0)
      multiply_gates<kRows, kWidth, kGates, input_sum>(p_.input + (g.row + row) * s_.input_size, s_.input_size, weights,
                                                       stride, inputs, next_inputs, gate, sums);
    multiply_gates<kRows, kWidth, kGates, Cell::hidden_sum>(g.previous + row * g.previous_row, g.previous_row,
                                                            weights + inputs * kUnits, stride, s_.output_size,
                                                            next_hidden, gate, sums);
  }

  // What to ask for while gates are multiplied: the packed weights of the gates, or block, after them; or, where these
  // are still to be packed, the first of them as they lie.
  struct Next {
    Lines<T> inputs, hidden;
  };
  template <int64_t kUnits>
  Next next_weights(const Group& g, int gate, const T* weights, int64_t size, int64_t tile) const {
    if (!single_) {
      const Lines<T> next = Lines<T>::after(weights, size, tile, depth_);
      return {next, next.from(depth_ - s_.output_size)};
    }
    const bool same = gate < Cell::kGates;
    const int64_t row = (same ? gate : 0) * s_.hidden_size + (g.block + !same) * block_units_;
    const auto& w = p_.weights[g.direction];
    return {{w.ih + row * s_.input_size}, {w.hh + row * s_.output_size}};
  }

  template <int kRows>
  void add_directly(const Group& g, int64_t row, T* sums, int64_t width) {
    const int64_t unit = g.block * block_units_, hidden = s_.hidden_size;
    const auto& w = p_.weights[g.direction];
    dot_gates<kRows, input_sum>(p_.input + (g.row + row) * s_.input_size, s_.input_size, w.ih + unit * s_.input_size,
                                Cell::kGates, hidden, s_.input_size, units(g.block), sums, width);
    dot_gates<kRows, Cell::hidden_sum>(g.previous + row * g.previous_row, g.previous_row, w.hh + unit * s_.output_size,
                                       Cell::kGates, hidden, s_.output_size, units(g.block), sums, width);
  }

  CellPlace<T> place_at(const Group& g, int64_t r, int64_t lane) {
    const int64_t hidden = s_.hidden_size, unit = g.block * block_units_ + lane, row = g.row + r;
    const int64_t saved = g.direction * s_.steps.rows() + row, state = g.direction * s_.steps.batch + g.batch + r;
    return {.previous = g.previous + r * g.previous_row + unit,
            .hidden = projected() ? unprojected_.data() + state * hidden + unit
                                  : p_.output + (row * s_.directions + g.direction) * s_.output_size + unit,
            .cell = p_.c_n ? p_.c_n + state * hidden + unit : nullptr,
            .gates = p_.gates ? p_.gates + saved * 4 * hidden + unit : nullptr,
            .cells = p_.cells ? p_.cells + saved * hidden + unit : nullptr,
            .hidden_size = hidden,
            .units = smaller(s_.hidden_size - unit, kLanes<T>)};
  }

  // output = hidden values times weight_hr, for this member's columns.
  void project(int64_t direction, const Step& step, const Member& member) {
    const int64_t width = s_.directions * s_.output_size;
    const Range columns = share(s_.output_size, member.index, member.team, kPanel<T>);
    const Range batch = intersect(member.batch, {0, step.rows});
    for (int64_t column = columns.begin; column < columns.end; column += kPanel<T>)
      for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
        const int64_t b = batch.begin + offset, left = columns.end - column;
        multiply_panel<T, tile_rows()>(unprojected_.data() + (direction * s_.steps.batch + b) * s_.hidden_size,
                                       s_.hidden_size, 1, packed_projection(direction) + column * s_.hidden_size,
                                       kPanel<T>, s_.hidden_size,
                                       p_.output + (step.first_row + b) * width + direction * s_.output_size + column,
                                       width, smaller(left, kPanel<T>), false);
      });
  }

  // h_n: the output of each sequence's last step in this direction, or h0 for one without steps.
  void copy_last(int64_t direction, const Member& member) {
    const Range columns = share(s_.output_size, member.index, member.team);
    const int64_t width = s_.directions * s_.output_size, size = s_.output_size;
    int64_t t = direction == 0 ? s_.steps.time - 1 : 0;
    for (int64_t b = member.batch.begin; b < member.batch.end; ++b) {
      while (t > 0 && s_.steps.batch_size(t) <= b) --t;
      const bool empty = s_.steps.batch_size(t) <= b;
      const T* last = empty ? p_.h0 + (direction * s_.steps.batch + b) * size
                            : p_.output + (s_.steps.first_row(t) + b) * width + direction * size;
      std::memcpy(p_.h_n + (direction * s_.steps.batch + b) * size + columns.begin, last + columns.begin,
                  static_cast<size_t>(columns.size()) * sizeof(T));
    }
  }

  const RecurrentForward<T>& p_;
  const RecurrentSizes& s_;
  const bool direct_, hoisted_;
  const bool single_;          // one step: each thread packs a block's weights just before it uses them
  const int64_t depth_;        // of packed weights: the input's part, if it is not hoisted, then the hidden values'
  const int64_t block_units_;  // hidden units of a block: a panel, or a vector if there would be too few blocks
  const int64_t blocks_;
  Scratch<T> weights_;      // [directions, blocks, kGates, depth, block_units]
  Scratch<T> biases_;       // [directions, blocks, 4, block_units]
  Scratch<T> sums_;         // [directions, rows, 4 * hidden]: the input's part of the sums
  Scratch<T> projection_;   // [directions, panels, hidden, kPanel]
  Scratch<T> unprojected_;  // [directions, batch, hidden]: hidden values before the projection
  Barrier everyone_, teams_[2];
};

}  // namespace
}  // namespace fused_rnn::cpu
