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

// Where a cell finds and leaves the values of the rows and units of one tile.
template <typename T>
struct CellPlace {
  const T* previous;  // hidden values of the step before, row stride previous_row
  int64_t previous_row;
  T* hidden;  // hidden values of this step, row stride hidden_row
  int64_t hidden_row;
  T* cell;   // cell values, stepped in place, row stride hidden_size (LSTM only)
  T* gates;  // row stride 4 * hidden_size; null if they are not kept
  T* cells;  // row stride hidden_size; null likewise
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
        depth_(s_.output_size + (hoisted_ || direct_ ? 0 : s_.input_size)),
        blocks_(divide_up(s_.hidden_size, kLanes<T>)),
        weights_(direct_ ? 0 : s_.directions * blocks_ * depth_ * kBlockWidth),
        biases_(s_.directions * blocks_ * kSumWidth),
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
      const int64_t bytes = blocks_ * depth_ * kBlockWidth * static_cast<int64_t>(sizeof(T));
      const Member member = assign(s_, bytes, thread, count);
      for (int64_t d = member.first_direction; d < s_.directions; d += member.direction_stride) walk(d, member);
    });
  }

 private:
  // From so many batch rows on, the input's product is part of the step; below, it is one product over all steps.
  static constexpr int64_t kFusedRows = 4;
  static constexpr int64_t kBlockWidth = Cell::kGates * kLanes<T>;
  static constexpr int64_t kSumWidth = kVectors * kLanes<T>;

  // Whether the weights are read as they lie: packing repays only if many rows use it, the more the longer the sums are
  // (a short sum costs little more than its last additions across a vector). Measured; see benchmarks/NOTES.md.
  static bool reads_directly(const RecurrentSizes& sizes) {
    const int64_t batch = sizes.steps.batch < 4 ? 4 : sizes.steps.batch;
    const int64_t depth = sizes.input_size + sizes.output_size;
    const int64_t most = depth < 128 ? 4 : depth > 1024 ? 32 : depth / 32;
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
  T* packed(int64_t direction, int64_t block) {
    return weights_.data() + (direction * blocks_ + block) * depth_ * kBlockWidth;
  }
  T* packed_projection(int64_t direction) {
    return projection_.data() + direction * divide_up(s_.output_size, kPanel<T>) * kPanel<T> * s_.hidden_size;
  }
  int64_t units(int64_t block) const { return smaller(s_.hidden_size - block * kLanes<T>, kLanes<T>); }

  // Packs this thread's share of the weights and biases.
  void pack(int64_t thread, int64_t count) {
    const Range mine = share(s_.directions * blocks_, thread, count);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t d = i / blocks_, block = i % blocks_, unit = block * kLanes<T>;
      const auto& w = p_.weights[d];
      Cell::pack_bias(w, s_.hidden_size, unit, units(block), biases_.data() + i * kSumWidth);
      if (direct_) continue;
      T* target = packed(d, block);
      if (!hoisted_) {
        pack_gates<Cell::kGates>(w.ih, s_.hidden_size, s_.input_size, unit, units(block), target);
        target += s_.input_size * kBlockWidth;
      }
      pack_gates<Cell::kGates>(w.hh, s_.hidden_size, s_.output_size, unit, units(block), target);
    }
    if (!projected()) return;
    const int64_t panels = divide_up(s_.output_size, kPanel<T>);
    const Range ours = share(s_.directions * panels, thread, count);
    for (int64_t i = ours.begin; i < ours.end; ++i) {
      const int64_t d = i / panels, column = i % panels * kPanel<T>, left = s_.output_size - column;
      pack_panel<T>({p_.weights[d].hr + column * s_.hidden_size, 1, s_.hidden_size}, s_.hidden_size,
                    smaller(left, kPanel<T>), packed_projection(d) + column * s_.hidden_size);
    }
  }

  // A team member's part in all steps of a direction.
  void walk(int64_t direction, const Member& member) {
    const Range blocks = share(blocks_, member.index, member.team);
    Barrier& team = teams_[direction];
    for (int64_t index = 0; index < s_.steps.time; ++index) {
      const Step step = step_at(s_.steps, direction, index);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        rows(direction, step, block, intersect(member.batch, {0, step.previous_rows}), true);
        rows(direction, step, block, intersect(member.batch, {step.previous_rows, step.rows}), false);
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
  void rows(int64_t direction, const Step& step, int64_t block, Range batch, bool has_previous) {
    const int64_t hidden = s_.hidden_size, width = s_.directions * s_.output_size, unit = block * kLanes<T>;
    for_each_tile<kMaxRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
      const int64_t b = batch.begin + offset, row = step.first_row + b;
      CellPlace<T> place;
      place.previous = has_previous ? p_.output + (step.previous_first + b) * width + direction * s_.output_size
                                    : p_.h0 + (direction * s_.steps.batch + b) * s_.output_size;
      place.previous_row = has_previous ? width : s_.output_size;
      place.hidden = projected() ? unprojected_.data() + (direction * s_.steps.batch + b) * hidden + unit
                                 : p_.output + row * width + direction * hidden + unit;
      place.hidden_row = projected() ? hidden : width;
      place.cell = p_.c_n ? p_.c_n + (direction * s_.steps.batch + b) * hidden + unit : nullptr;
      const int64_t saved = direction * s_.steps.rows() + row;
      place.gates = p_.gates ? p_.gates + saved * 4 * hidden + unit : nullptr;
      place.cells = p_.cells ? p_.cells + saved * hidden + unit : nullptr;
      place.hidden_size = hidden;
      place.units = units(block);
      if (place.gates) {
        // What is kept goes to lines that are far away when the sums are done, unless they are asked for now.
        for (int64_t r = 0; r < tile_rows(); ++r) {
          for (int64_t gate = 0; gate < 4; ++gate) __builtin_prefetch(place.gates + (r * 4 + gate) * hidden, 1);
          if (place.cells) __builtin_prefetch(place.cells + r * hidden, 1);
        }
      }
      Tile<T, tile_rows()> tile;
      sum(tile, direction, block, row, place);
      Cell::finish(tile, unit, place);
    });
  }

  // The gates' sums of a tile: bias + input times weight_ih + previous hidden values times weight_hh.
  template <int kRows>
  FUSED_RNN_INLINE void sum(Tile<T, kRows>& tile, int64_t direction, int64_t block, int64_t row,
                            const CellPlace<T>& place) {
    const T* bias = biases_.data() + (direction * blocks_ + block) * kSumWidth;
    unroll<kRows * kVectors>([&](auto i) FUSED_RNN_INLINE {
      tile.sum[i / kVectors][i % kVectors] = Vec<T>::loadu(bias + i % kVectors * kLanes<T>);
    });
    const T* input = p_.input + row * s_.input_size;
    if (direct_) {
      sum_direct(tile, direction, block, input, place);
      return;
    }
    const T* weights = packed(direction, block);
    if (hoisted_) {
      const T* sums = input_sums(direction) + row * 4 * s_.hidden_size + block * kLanes<T>;
      unroll<kRows * Cell::kGates>([&](auto i) FUSED_RNN_INLINE {
        constexpr int r = i / Cell::kGates, gate = i % Cell::kGates;
        tile.sum[r][gate] += load(sums + (r * 4 + gate) * s_.hidden_size, place.units);
      });
    } else {
      Cell::multiply_input(tile, input, s_.input_size, weights, s_.input_size);
      weights += s_.input_size * kBlockWidth;
    }
    Cell::multiply_hidden(tile, place.previous, place.previous_row, weights, s_.output_size);
  }

  template <int kRows>
  void sum_direct(Tile<T, kRows>& tile, int64_t direction, int64_t block, const T* input, const CellPlace<T>& place) {
    alignas(64) T sums[kRows * kSumWidth];
    const int64_t unit = block * kLanes<T>, hidden = s_.hidden_size;
    unroll<kRows>([&](auto row) FUSED_RNN_INLINE { tile.store_row(row, sums + row * kSumWidth); });
    const auto& w = p_.weights[direction];
    Cell::template dot_input<kRows>(input, s_.input_size, w.ih + unit * s_.input_size, hidden, s_.input_size,
                                    place.units, sums);
    Cell::template dot_hidden<kRows>(place.previous, place.previous_row, w.hh + unit * s_.output_size, hidden,
                                     s_.output_size, place.units, sums);
    tile.load_from(sums, kSumWidth, kSumWidth);
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
  const int64_t depth_;     // of a packed block: the input's part, if it is not hoisted, then the hidden values'
  const int64_t blocks_;    // of kLanes hidden units
  Scratch<T> weights_;      // [directions, blocks, depth, kGates, kLanes]
  Scratch<T> biases_;       // [directions, blocks, kVectors, kLanes]
  Scratch<T> sums_;         // [directions, rows, 4 * hidden]: the input's part of the sums
  Scratch<T> projection_;   // [directions, panels, hidden, kPanel]
  Scratch<T> unprojected_;  // [directions, batch, hidden]: hidden values before the projection
  Barrier everyone_, teams_[2];
};

}  // namespace
}  // namespace fused_rnn::cpu
