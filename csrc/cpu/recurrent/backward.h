// The backward loop over the steps of a recurrent layer, from the last to the first: in one pass a step turns the
// gradient of its hidden values into those of its gates' sums. The gradients of input and weights follow as products
// over all steps; see recurrent_gradients.h. The cell is a parameter; see lstm_kernel.cpp and gru_kernel.cpp.

#pragma once

#include <cstdint>

#include "cpu/kit/gemm.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/schedule.h"
#include "cpu/recurrent/weight_gradients.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// Where a cell finds and leaves the values of some units of one row.
template <typename T>
struct GradientPlace {
  const T* gates;      // gate stride hidden_size, as in grad_gates
  const T* cell;       // cell values of this step (LSTM only)
  const T* previous;   // of the step before: cell values (LSTM) or hidden values (GRU)
  const T* grad_cell;  // gradient of this step's cell values, or null for zero (LSTM only)
  T* grad_carried;  // gradient that goes to the step before past the weights: of the cell (LSTM) or hidden value (GRU)
  T* grad_gates;
  int64_t hidden_size;
  int64_t units;  // lanes in use
};

template <typename Cell, typename T>
class BackwardLoop {
 public:
  explicit BackwardLoop(const RecurrentBackwardParams<T>& params)
      : p_(params),
        s_(params.sizes),
        direct_(s_.steps.time * divide_up(s_.steps.batch, kPanelRows) <= kDirectTiles),
        sums_size_(Cell::kGates * s_.hidden_size),
        back_(direct_ ? 0 : packed_size(s_.output_size, sums_size_)),
        product_(direct_ ? s_.directions * s_.steps.batch * s_.output_size : 0),
        project_back_(projected() ? packed_size(s_.hidden_size, s_.output_size) : 0),
        grad_hidden_(projected() ? s_.directions * s_.steps.rows() * s_.output_size : 0) {}

  void run() {
    parallel(useful_threads(s_, s_.steps.batch * sums_size_ * s_.output_size), [&](int64_t thread, int64_t count) {
      pack(thread, count);
      everyone_.wait(count);
      const int64_t bytes = s_.output_size * sums_size_ * static_cast<int64_t>(sizeof(T));
      const Member member = assign(s_, bytes, thread, count);
      for (int64_t d = member.first_direction; d < s_.directions; d += member.direction_stride) walk(d, member);
    });
    RecurrentGradients<Cell, T>(p_, grad_hidden_.data()).run();
  }

 private:
  // Up to so many register tiles in all steps, weight_hh is read as it lies.
  static constexpr int64_t kDirectTiles = 8;

  static int64_t padded(int64_t columns) { return divide_up(columns, kPanel<T>) * kPanel<T>; }
  // How much the panels of a weight [depth, columns] take for all directions.
  int64_t packed_size(int64_t columns, int64_t depth) const { return s_.directions * padded(columns) * depth; }
  static int64_t width(int64_t left) { return smaller(left, kPanel<T>); }
  bool projected() const { return p_.weights[0].hr != nullptr; }

  T* packed_back(int64_t direction) { return back_.data() + direction * padded(s_.output_size) * sums_size_; }
  T* product(int64_t direction, int64_t b) {
    return product_.data() + (direction * s_.steps.batch + b) * s_.output_size;
  }
  T* packed_project_back(int64_t direction) {
    return project_back_.data() + direction * padded(s_.hidden_size) * s_.output_size;
  }

  // Packs this thread's share of a weight [depth, columns] into panels.
  void pack_weight(const T* weight, int64_t depth, int64_t columns, T* packed, int64_t thread, int64_t count) {
    const Range mine = share(columns, thread, count, kPanel<T>);
    for (int64_t column = mine.begin; column < mine.end; column += kPanel<T>)
      pack_panel<T>({weight + column, columns, 1}, depth, width(columns - column), packed + column * depth);
  }

  void pack(int64_t thread, int64_t count) {
    for (int64_t d = 0; d < s_.directions; ++d) {
      if (!direct_) pack_weight(p_.weights[d].hh, sums_size_, s_.output_size, packed_back(d), thread, count);
      if (projected())
        pack_weight(p_.weights[d].hr, s_.output_size, s_.hidden_size, packed_project_back(d), thread, count);
    }
  }

  // A team member's part in all steps of a direction. After the last one, the gradients of the initial states are done.
  void walk(int64_t direction, const Member& member) {
    const Range columns = share(s_.output_size, member.index, member.team, kPanel<T>);
    const Range units = share(s_.hidden_size, member.index, member.team, kPanel<T>);
    Barrier& team = teams_[direction];
    for (int64_t index = s_.steps.time - 1; index >= -1; --index) {
      // Of the rows of the following step, the first previous_rows come from this step; the others started there.
      const Step following = index + 1 < s_.steps.time ? step_at(s_.steps, direction, index + 1) : Step{};
      const Step step = index >= 0 ? step_at(s_.steps, direction, index) : Step{};
      const int64_t continued = following.previous_rows;
      if (direct_) multiply_directly(direction, following, intersect(member.batch, {0, following.rows}), columns);
      serpentine(columns, kPanel<T>, index + 1, [&](int64_t column, int64_t next) {
        rows(direction, step, following, column, next, intersect(member.batch, {0, continued}), true);
        rows(direction, step, following, column, next, intersect(member.batch, {continued, step.rows}), false);
        started(direction, following, column, next, intersect(member.batch, {continued, following.rows}));
      });
      if (projected() && index >= 0) {
        team.wait(member.team);
        for (int64_t unit = units.begin; unit < units.end; unit += kPanel<T>)
          project(direction, step, unit, intersect(member.batch, {0, step.rows}));
      }
      team.wait(member.team);
    }
  }

  const T* grad_gates_row(int64_t direction, int64_t row) const {
    return p_.grad_gates + (direction * s_.steps.rows() + row) * 4 * s_.hidden_size;
  }

  // What multiply_back() gives, for all `columns`, with weight_hh read as it lies.
  void multiply_directly(int64_t direction, const Step& following, Range batch, Range columns) {
    int64_t depth = 0;
    for (const Part part : Cell::kHiddenParts) {
      const int64_t count = part.count * s_.hidden_size;
      gemm_block<T>(
          {.rows = s_.steps.batch,
           .columns = s_.output_size,
           .depth = count,
           .a = {grad_gates_row(direction, following.first_row) + part.first * s_.hidden_size, 4 * s_.hidden_size, 1},
           .b = {p_.weights[direction].hh + depth * s_.output_size, s_.output_size, 1},
           .c = product(direction, 0),
           .c_row = s_.output_size,
           .accumulate = depth > 0},
          batch, columns);
      depth += count;
    }
  }

  // tile = gradients of the sums of the following step, from batch row b on, times weight_hh. The first tiles ask for
  // the panel that comes next.
  template <typename AnyTile>
  FUSED_RNN_INLINE void multiply_back(AnyTile& tile, int64_t direction, const Step& following, int64_t b,
                                      int64_t column, int64_t next, int64_t tile_index) {
    if (direct_) {
      tile.load_from(product(direction, b) + column, s_.output_size, width(s_.output_size - column));
      return;
    }
    const T *weights = packed_back(direction), *panel = weights + column * sums_size_;
    tile.zero();
    Cell::multiply_back(
        tile, grad_gates_row(direction, following.first_row + b), 4 * s_.hidden_size, panel, s_.hidden_size,
        Lines<T>::share(weights + next * sums_size_, sums_size_ * kPanel<T>, panel, tile_index, sums_size_));
  }

  // Asks for what the steps of some rows and a panel of units will read and write, while the sums before are computed.
  void prefetch(int64_t direction, const Step& step, int64_t unit, int64_t count, int64_t b, int64_t rows) const {
    const int64_t hidden = s_.hidden_size, from = direction * s_.steps.rows() + step.first_row + b;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t lane = 0; lane < count; lane += kLanes<T>) {
        const int64_t at = (from + r) * 4 * hidden + unit + lane;
        for (int64_t gate = 0; gate < 4; ++gate) {
          __builtin_prefetch(p_.gates + at + gate * hidden);
          __builtin_prefetch(p_.grad_gates + at + gate * hidden, 1);
        }
        if (p_.cells) __builtin_prefetch(p_.cells + (from + r) * hidden + unit + lane);
      }
  }

  // One step of a panel of hidden values, for batch rows that all go on, or all do not, in the following step.
  void rows(int64_t direction, const Step& step, const Step& following, int64_t column, int64_t next, Range batch,
            bool goes_on) {
    const int64_t count = width(s_.output_size - column), total = s_.directions * s_.output_size;
    for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
      const int64_t b = batch.begin + offset, row = step.first_row + b;
      if (!projected()) prefetch(direction, step, column, count, b, tile_rows());
      Tile<T, tile_rows(), kPanelVectors> tile;
      if (goes_on)
        multiply_back(tile, direction, following, b, column, next, offset / tile_rows());
      else
        tile.zero();
      if (!goes_on || Cell::kCarriesHidden)
        tile.add(p_.grad_h + (direction * s_.steps.batch + b) * s_.output_size + column, s_.output_size, count);
      if (p_.grad_output) tile.add(p_.grad_output + row * total + direction * s_.output_size + column, total, count);
      if (projected()) {
        tile.store_to(grad_hidden_.data() + (direction * s_.steps.rows() + row) * s_.output_size + column,
                      s_.output_size, count);
      } else {
        finish(tile, direction, step, column, count, b);
      }
    });
  }

  // grad_h of batch rows that have no step before the following one.
  void started(int64_t direction, const Step& following, int64_t column, int64_t next, Range batch) {
    const int64_t count = width(s_.output_size - column);
    for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
      const int64_t b = batch.begin + offset;
      T* grad_h = p_.grad_h + (direction * s_.steps.batch + b) * s_.output_size + column;
      Tile<T, tile_rows(), kPanelVectors> tile;
      multiply_back(tile, direction, following, b, column, next, offset / tile_rows());
      if (Cell::kCarriesHidden) tile.add(grad_h, s_.output_size, count);
      tile.store_to(grad_h, s_.output_size, count);
    });
  }

  // The gradient of hidden values before the projection, and the step from there.
  void project(int64_t direction, const Step& step, int64_t unit, Range batch) {
    const int64_t count = width(s_.hidden_size - unit);
    for_each_tile<kPanelRows>(batch.size(), [&](auto tile_rows, int64_t offset) {
      const int64_t b = batch.begin + offset;
      prefetch(direction, step, unit, count, b, tile_rows());
      Tile<T, tile_rows(), kPanelVectors> tile;
      tile.zero();
      const int64_t row = direction * s_.steps.rows() + step.first_row + b;
      tile.multiply_in_parts(grad_hidden_.data() + row * s_.output_size, s_.output_size, 1,
                             packed_project_back(direction) + unit * s_.output_size, kPanel<T>, s_.output_size);
      finish(tile, direction, step, unit, count, b);
    });
  }

  // Steps back the cells of a tile of gradients of hidden values.
  template <int kRows>
  __attribute__((flatten)) void finish(const Tile<T, kRows, kPanelVectors>& tile, int64_t direction, const Step& step,
                                       int64_t unit, int64_t count, int64_t b) {
    alignas(64) T grad_hidden[kRows * kPanel<T>];
    tile.store_to(grad_hidden, kPanel<T>, kPanel<T>);
    const int64_t hidden = s_.hidden_size, all_rows = direction * s_.steps.rows();
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t row = all_rows + step.first_row + b + r, state = (direction * s_.steps.batch + b + r) * hidden;
      const bool has_previous = b + r < step.previous_rows;
      for (int64_t lane = 0; lane < count; lane += kLanes<T>) {
        const int64_t at = unit + lane;
        GradientPlace<T> place;
        place.gates = p_.gates + row * 4 * hidden + at;
        place.grad_gates = p_.grad_gates + row * 4 * hidden + at;
        if constexpr (Cell::kCarriesHidden) {
          place.previous = has_previous ? p_.output + (step.previous_first + b + r) * s_.directions * hidden +
                                              direction * hidden + at
                                        : p_.h0 + state + at;
          place.cell = place.grad_cell = nullptr;
          place.grad_carried = p_.grad_h + state + at;
        } else {
          place.previous =
              has_previous ? p_.cells + (all_rows + step.previous_first + b + r) * hidden + at : p_.c0 + state + at;
          place.cell = p_.cells + row * hidden + at;
          place.grad_cell = p_.grad_cells ? p_.grad_cells + row * hidden + at : nullptr;
          place.grad_carried = p_.grad_c + state + at;
        }
        place.hidden_size = hidden;
        place.units = smaller(count - lane, kLanes<T>);
        Cell::step_back(place, Vec<T>::loadu(grad_hidden + r * kPanel<T> + lane));
      }
    }
  }

  const RecurrentBackwardParams<T>& p_;
  const RecurrentSizes& s_;
  const bool direct_;
  const int64_t sums_size_;  // gates' sums of a row that come from the hidden values
  Scratch<T> back_;          // [directions, panels, kGates * hidden, kPanel]: weight_hh; unless it is read directly
  Scratch<T> product_;       // [directions, batch, output_size]: else, the product with it
  Scratch<T> project_back_;  // [directions, panels, output_size, kPanel]: weight_hr
  Scratch<T> grad_hidden_;   // [directions, rows, output_size]: only with a projection
  Barrier everyone_, teams_[2];
};

}  // namespace
}  // namespace fused_rnn::cpu
