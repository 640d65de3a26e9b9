// The weights of a recurrent layer as the forward loop over its steps takes them: as they lie, packed before the first
// step, or packed gate by gate in the only one.

#pragma once

#include <cstdint>

#include "cpu/kit/gemm.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/gate_sums.h"
#include "cpu/recurrent/stored_weights.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// Factors are what is multiplied where weights are packed; depths of packed weights count their places.
template <typename Cell, typename T, typename Factors>
class ForwardWeights {
 public:
  const bool direct;          // weights are read as they lie
  const bool hoisted;         // the input's product is one over all steps, not part of each step
  const bool single;          // one step: a thread packs a gate of a block just before it uses it
  const bool projected;       // there is a weight_hr
  const int64_t inputs;       // of the packed depth, the input's part: 0 if it is hoisted
  const int64_t depth;        // of packed weights: the input's part, then that of the hidden values
  const int64_t block_units;  // hidden units of a block: a panel, or a vector if there would be too few blocks
  const int64_t blocks;
  const int64_t block_size;  // how many values a block's packed weights take

  ForwardWeights(const StoredWeights<T>* weights, const RecurrentSizes& sizes)
      : direct(reads_directly(sizes)),
        hoisted(!direct && sizes.steps.batch < kFusedRows),
        single(!direct && sizes.steps.time == 1),
        projected(weights[0].hr != nullptr),
        inputs(hoisted || direct ? 0 : places(sizes.input_size)),
        depth(places(sizes.output_size) + inputs),
        block_units(sizes.threads > 1 && sizes.hidden_size < 4 * sizes.threads * kPanel<T> ? kLanes<T> : kPanel<T>),
        blocks(divide_up(sizes.hidden_size, block_units)),
        block_size(Cell::kGates * depth * block_units),
        w_(weights),
        s_(sizes),
        weights_(direct || single ? 0 : s_.directions * blocks * block_size),
        biases_(s_.directions * blocks * 4 * block_units),
        projection_(projected ? s_.directions * projection_size() : 0) {}

  StoredMatrix<T> ih(int64_t d) const { return {w_[d].ih, w_[d].stored, s_.input_size}; }
  StoredMatrix<T> hh(int64_t d) const { return {w_[d].hh, w_[d].stored, s_.output_size}; }
  StoredMatrix<T> hr(int64_t d) const { return {w_[d].hr, w_[d].stored, s_.hidden_size}; }

  // [kGates, depth, units]; [4, units]; [panels, hidden_size, kPanel].
  T* packed(int64_t direction, int64_t block) { return weights_.data() + (direction * blocks + block) * block_size; }
  T* bias(int64_t direction, int64_t block) { return biases_.data() + (direction * blocks + block) * 4 * block_units; }
  T* projection(int64_t direction) { return projection_.data() + direction * projection_size(); }

  // How many places so many terms of a sum take.
  static int64_t places(int64_t terms) { return divide_up(terms, Factors::kTerms); }

  int64_t units(int64_t block) const { return smaller(s_.hidden_size - block * block_units, block_units); }

  // Calls body(std::integral_constant<int, vectors>) with the number of vectors that a block's units fill.
  template <typename Body>
  void for_width_of(int64_t block, const Body& body) const {
    units(block) > kLanes<T> ? body(std::integral_constant<int, 2>()) : body(std::integral_constant<int, 1>());
  }

  // How many values a thread needs to widen as many rows of any matrix as it packs at once.
  int64_t widened_size() const {
    const int64_t most = larger(ih(0).scratch(kPanel<T>), hh(0).scratch(kPanel<T>));
    return projected ? larger(most, hr(0).scratch(kPanel<T>)) : most;
  }

  // Packs a thread's share of all that is packed before the first step.
  void pack(int64_t thread, int64_t count) {
    const Range mine = share(s_.directions * blocks, thread, count);
    Scratch<T> widened(widened_size());
    for (int64_t i = mine.begin; i < mine.end; ++i)
      for_width_of(i % blocks,
                   [&](auto width) { pack_block<width * kLanes<T>>(i / blocks, i % blocks, widened.data()); });
    if (!projected) return;
    const int64_t panels = divide_up(s_.output_size, kPanel<T>), hidden = s_.hidden_size;
    const Range ours = share(s_.directions * panels, thread, count);
    for (int64_t i = ours.begin; i < ours.end; ++i) {
      const int64_t d = i / panels, column = i % panels * kPanel<T>,
                    width = smaller(s_.output_size - column, kPanel<T>);
      pack_panel<T>({hr(d).rows(column, width, widened.data()), 1, hidden}, hidden, width,
                    projection(d) + column * hidden);
    }
  }

  // Packs a gate of a block into its place among `target`, the block's weights.
  template <int64_t kWidth>
  void pack_gate(int64_t direction, int64_t block, int gate, T* widened, T* target) const {
    const int64_t count = units(block), row = gate * s_.hidden_size + block * block_units, hidden = depth - inputs;
    const auto rows = [&](const StoredMatrix<T>& weight) {
      if constexpr (Factors::kTerms == 2)
        return weight.pairs(row, count, widened);
      else
        return weight.rows(row, count, widened);
    };
    target += gate * depth * kWidth;
    if (inputs > 0) pack_panel<T, kWidth>({rows(ih(direction)), 1, inputs}, inputs, count, target);
    pack_panel<T, kWidth>({rows(hh(direction)), 1, hidden}, hidden, count, target + inputs * kWidth);
  }

  // What to ask for while gates are multiplied: the packed weights of the gates, or block, after them; or, where these
  // are still to be packed, the first of them as they lie.
  struct Next {
    Lines<T> input, hidden;
  };
  Next ahead(int64_t direction, int64_t block, int gate, int64_t next, const T* multiplied, int64_t size,
             int64_t tile) {
    const bool same = gate < Cell::kGates;
    if (!single) {
      const Lines<T> lines =
          Lines<T>::share(same ? multiplied + size : packed(direction, next), size, multiplied, tile, depth);
      return {lines, lines.from(inputs)};
    }
    const int64_t row = (same ? gate : 0) * s_.hidden_size + (same ? block : next) * block_units;
    return {{ih(direction).line_of(row)}, {hh(direction).line_of(row)}};
  }

 private:
  // From so many batch rows on, the input's product is part of the step; below, it is one product over all steps.
  static constexpr int64_t kFusedRows = 4;

  // Packing repays only if enough rows use it, the more in several steps, for which all is packed first; and the more
  // the longer the sums are (a short sum costs little more than its last additions across a vector). Measured; see
  // benchmarks/NOTES.md.
  static bool reads_directly(const RecurrentSizes& sizes) {
    if (sizes.steps.time == 1) return sizes.steps.batch <= 2 * kMaxRows;
    const int64_t batch = sizes.steps.batch < 4 ? 4 : sizes.steps.batch;
    const int64_t depth = sizes.input_size + sizes.output_size;
    const int64_t most = depth < 128 ? 4 : depth > 512 ? 16 : depth / 32;
    return sizes.steps.time * batch <= most;
  }

  int64_t projection_size() const { return divide_up(s_.output_size, kPanel<T>) * kPanel<T> * s_.hidden_size; }

  // Packs a block's weights, unless that is for later, and its biases.
  template <int64_t kWidth>
  void pack_block(int64_t direction, int64_t block, T* widened) {
    Cell::pack_bias(w_[direction], s_.hidden_size, block * block_units, units(block), bias(direction, block), kWidth);
    if (direct || single) return;
    for (int gate = 0; gate < Cell::kGates; ++gate)
      pack_gate<kWidth>(direction, block, gate, widened, packed(direction, block));
  }

  const StoredWeights<T>* w_;
  const RecurrentSizes& s_;
  Scratch<T> weights_;     // [directions, blocks, kGates, depth, block_units]
  Scratch<T> biases_;      // [directions, blocks, 4, block_units]
  Scratch<T> projection_;  // [directions, panels, hidden_size, kPanel]
};

}  // namespace
}  // namespace fused_rnn::cpu
