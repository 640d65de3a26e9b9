// The weights of a recurrent layer for the forward loop over its steps. As the plan says, they are read in place,
// packed before the first step, or, in a layer of one step, packed gate by gate within it.

#pragma once

#include <cstdint>

#include "cpu/kit/gemm.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/gate_sums.h"
#include "cpu/recurrent/plan.h"
#include "cpu/recurrent/stored_weights.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// Factors is the type of the elements that packed weights are multiplied as: Values<T>, or Pairs, of which each holds
// two bfloat16 numbers in the memory of one float. Depths of packed weights count elements.
template <typename Cell, typename T, typename Factors>
class PackedWeights {
 public:
  const WeightUse use;
  const bool projected;       // whether there is a weight_hr
  const int64_t inputs;       // the depth of packed weight_ih; 0 if the input's product is not part of a step
  const int64_t depth;        // the depth of all packed weights: `inputs`, then the depth of weight_hh
  const int64_t block_units;  // hidden units of a block
  const int64_t blocks;
  const int64_t block_size;  // how many values a block's packed weights take

  PackedWeights(const ForwardPlan& plan, const StoredWeights<T>* weights, const RecurrentSizes& sizes)
      : use(plan.weights),
        projected(weights[0].hr != nullptr),
        inputs(plan.input_first || plan.weights == WeightUse::kInPlace ? 0 : elements(sizes.input_size)),
        depth(elements(sizes.output_size) + inputs),
        block_units(plan.block_units),
        blocks(divide_up(sizes.hidden_size, block_units)),
        block_size(Cell::kGates * depth * block_units),
        w_(weights),
        s_(sizes),
        weights_(use == WeightUse::kPackedBefore ? s_.directions * blocks * block_size : 0),
        biases_(s_.directions * blocks * Cell::kSums * block_units),
        projection_(projected ? s_.directions * projection_size() : 0) {}

  StoredMatrix<T> ih(int64_t d) const { return {w_[d].ih, w_[d].stored, s_.input_size}; }
  StoredMatrix<T> hh(int64_t d) const { return {w_[d].hh, w_[d].stored, s_.output_size}; }
  StoredMatrix<T> hr(int64_t d) const { return {w_[d].hr, w_[d].stored, s_.hidden_size}; }

  // Return a block's packed weights [kGates, depth, units], a block's biases [kSums, units], and a direction's
  // weight_hr [panels, hidden_size, kPanel].
  T* packed(int64_t direction, int64_t block) { return weights_.data() + (direction * blocks + block) * block_size; }
  T* bias(int64_t direction, int64_t block) {
    return biases_.data() + (direction * blocks + block) * Cell::kSums * block_units;
  }
  T* projection(int64_t direction) { return projection_.data() + direction * projection_size(); }

  // Returns how many elements hold the given number of terms of a sum.
  static int64_t elements(int64_t terms) { return divide_up(terms, Factors::kTerms); }

  int64_t units(int64_t block) const { return smaller(s_.hidden_size - block * block_units, block_units); }

  // Calls body(std::integral_constant<int, vectors>) with the number of vectors that a block's units fill.
  template <typename Body>
  void for_width_of(int64_t block, const Body& body) const {
    units(block) > kLanes<T> ? body(std::integral_constant<int, 2>()) : body(std::integral_constant<int, 1>());
  }

  // Returns how many values of scratch a thread needs to widen the rows that it packs at a time, of any matrix.
  int64_t widened_size() const {
    const int64_t most = larger(ih(0).scratch(kPanel<T>), hh(0).scratch(kPanel<T>));
    return projected ? larger(most, hr(0).scratch(kPanel<T>)) : most;
  }

  // Packs a thread's share of the weights and biases that are packed before the first step.
  void pack(int64_t thread, int64_t count) {
    const Range mine = share(s_.directions * blocks, thread, count);
    Scratch<T> widened(widened_size());
    for (int64_t i = mine.begin; i < mine.end; ++i)
      for_width_of(i % blocks,
                   [&](auto width) { pack_block<width * kLanes<T>>(i / blocks, i % blocks, widened.data()); });
    if (!projected) return;
    const int64_t panels = divide_up(s_.output_size, kPanel<T>), hidden = s_.hidden_size;
    const Range my_panels = share(s_.directions * panels, thread, count);
    for (int64_t i = my_panels.begin; i < my_panels.end; ++i) {
      const int64_t d = i / panels, column = i % panels * kPanel<T>,
                    width = smaller(s_.output_size - column, kPanel<T>);
      pack_panel<T>({hr(d).rows(column, width, widened.data()), 1, hidden}, hidden, width,
                    projection(d) + column * hidden);
    }
  }

  // Packs the weights of one gate of a block into their part of `target`, the block's packed weights.
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

  // The lines that a tile prefetches during its products with the input and with the hidden values.
  struct PrefetchNext {
    PrefetchLines<T> input, hidden;
  };
  // Returns the lines that tile number `tile` prefetches while it multiplies `size` values of weights at `multiplied`,
  // of the gates before `gate`: the packed weights of the next gates or, after the last gate, of block `next`. Weights
  // that are yet to be packed are prefetched in place, from their first row on.
  PrefetchNext prefetch_after(int64_t direction, int64_t block, int gate, int64_t next, const T* multiplied,
                              int64_t size, int64_t tile) {
    const bool same = gate < Cell::kGates;
    if (use == WeightUse::kPackedBefore) {
      const PrefetchLines<T> lines =
          PrefetchLines<T>::for_tile(same ? multiplied + size : packed(direction, next), size, multiplied, tile, depth);
      return {lines, lines.from(inputs)};
    }
    const int64_t row = (same ? gate : 0) * s_.hidden_size + (same ? block : next) * block_units;
    return {{ih(direction).row_address(row)}, {hh(direction).row_address(row)}};
  }

 private:
  int64_t projection_size() const { return divide_up(s_.output_size, kPanel<T>) * kPanel<T> * s_.hidden_size; }

  // Packs a block's biases, and its weights if the plan packs all weights before the first step.
  template <int64_t kWidth>
  void pack_block(int64_t direction, int64_t block, T* widened) {
    pack_bias(w_[direction], block * block_units, units(block), bias(direction, block), kWidth);
    if (use != WeightUse::kPackedBefore) return;
    for (int gate = 0; gate < Cell::kGates; ++gate)
      pack_gate<kWidth>(direction, block, gate, widened, packed(direction, block));
  }

  // Writes the initial values of the sums of a block's units, [kSums, width]: bias_ih of gate g is part of sum g,
  // bias_hh of sum hidden_sum(g).
  void pack_bias(const StoredWeights<T>& weights, int64_t unit, int64_t count, T* packed, int64_t width) const {
    for (int gate = 0; gate < Cell::kGates; ++gate)
      for (int64_t lane = 0; lane < width; ++lane) {
        const bool used = weights.bias_ih && lane < count;
        const auto at = [&](const T* bias) { return used ? bias[gate * s_.hidden_size + unit + lane] : T(0); };
        const T of_input = at(weights.bias_ih), of_hidden = at(weights.bias_hh);
        const int sum = Cell::hidden_sum(gate);
        packed[gate * width + lane] = sum == gate ? of_input + of_hidden : of_input;
        if (sum != gate) packed[sum * width + lane] = of_hidden;
      }
  }

  const StoredWeights<T>* w_;
  const RecurrentSizes& s_;
  Scratch<T> weights_;     // [directions, blocks, kGates, depth, block_units]
  Scratch<T> biases_;      // [directions, blocks, kSums, block_units]
  Scratch<T> projection_;  // [directions, panels, hidden_size, kPanel]
};

}  // namespace
}  // namespace fused_rnn::cpu
