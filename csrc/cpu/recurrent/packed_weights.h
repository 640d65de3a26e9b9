// The weights of a recurrent layer for the forward loop over its steps. As the plan says, they are read in place, or
// packed before the first step; or they were packed before the call, since the layer is frozen.

#pragma once

#include <cstdint>

#include "cpu/kit/gemm.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/elements.h"
#include "cpu/recurrent/gate_sums.h"
#include "cpu/recurrent/plan.h"
#include "cpu/recurrent/stored_weights.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// Factors is the type of the elements that packed weights are multiplied as: Values<T>, or a type whose elements hold
// several narrow numbers in the memory of one float. Depths of packed weights count elements.
template <typename Cell, typename T, typename Factors>
class PackedWeights {
 public:
  const WeightUse use;
  const bool projected;       // whether there is a weight_hr
  const int64_t inputs;       // the depth of packed weight_ih; 0 if it is not packed
  const int64_t hiddens;      // the depth of packed weight_hh
  const int64_t depth;        // the sum of both
  const int64_t block_units;  // hidden units of a block
  const int64_t blocks;
  const int64_t block_size;  // how many values a block's packed weights take

  template <typename Params>
  PackedWeights(const ForwardPlan& plan, const Params& params)
      : use(plan.weights),
        projected(frozen() ? params.frozen.projected : params.weights[0].hr != nullptr),
        inputs(!frozen() && (plan.input_first || use == WeightUse::kInPlace) ? 0 : elements(params.sizes.input_size)),
        hiddens(elements(params.sizes.output_size)),
        depth(inputs + hiddens),
        block_units(plan.block_units),
        blocks(divide_up(params.sizes.hidden_size, block_units)),
        block_size(Cell::kGates * depth * block_units),
        w_(params.weights),
        s_(params.sizes),
        memory_(frozen() ? 0 : size()),
        biases_(frozen() ? static_cast<T*>(params.frozen.data) : memory_.data()) {}

  StoredMatrix<T> ih(int64_t d) const { return {w_[d].ih, w_[d].stored, s_.input_size}; }
  StoredMatrix<T> hh(int64_t d) const { return {w_[d].hh, w_[d].stored, s_.output_size}; }
  StoredMatrix<T> hr(int64_t d) const { return {w_[d].hr, w_[d].stored, s_.hidden_size}; }

  // How many values all arrays take, one after another: biases, scales and offsets if there are any, weights if they
  // are packed before the first step, and weight_hr. The memory of a frozen layer has this size.
  int64_t size() const { return projection_begin() + (projected ? s_.directions * projection_size() : 0); }

  // Return a block's packed weights, [kGates, inputs, units] and then [kGates, hiddens, units], a block's biases
  // [kSums, units], and a direction's weight_hr [panels, hidden_size, kPanel].
  T* packed(int64_t direction, int64_t block) { return biases_ + weights_begin() + at(direction, block) * block_size; }
  T* bias(int64_t direction, int64_t block) { return biases_ + at(direction, block) * Cell::kSums * block_units; }
  T* projection(int64_t direction) { return biases_ + projection_begin() + direction * projection_size(); }

  // Return the scales and the offsets of a block's weight_ih or weight_hh, [kGates, units], of elements that have them.
  T* scale(int64_t direction, int64_t block, bool of_hidden) {
    return biases_ + all_blocks(Cell::kSums) + (at(direction, block) * 4 + (of_hidden ? 2 : 0)) * of_gates();
  }
  int32_t* offset(int64_t direction, int64_t block, bool of_hidden) {
    return reinterpret_cast<int32_t*>(scale(direction, block, of_hidden) + of_gates());
  }

  // Returns how many elements hold the given number of terms of a sum.
  static int64_t elements(int64_t terms) { return divide_up(terms, Factors::kTerms); }

  int64_t units(int64_t block) const { return smaller(s_.hidden_size - block * block_units, block_units); }

  // Calls body(std::integral_constant<int, vectors>) with the number of vectors that a block's units fill.
  template <typename Body>
  void for_width_of(int64_t block, const Body& body) const {
    units(block) > kLanes<T> ? body(std::integral_constant<int, 2>()) : body(std::integral_constant<int, 1>());
  }

  // Returns how many values of scratch a thread needs for the rows that it packs at a time, of any matrix.
  int64_t widened_size() const {
    const int64_t most = larger(packing_scratch<Factors>(ih(0), kPanel<T>), packing_scratch<Factors>(hh(0), kPanel<T>));
    return projected ? larger(most, hr(0).scratch(kPanel<T>)) : most;
  }

  // Packs a thread's share of the weights and biases that are packed before the first step. `widened` are
  // widened_size() values of scratch.
  void pack(int64_t thread, int64_t count, T* widened) {
    const Range mine = share(s_.directions * blocks, thread, count);
    for (int64_t i = mine.begin; i < mine.end; ++i)
      for_width_of(i % blocks, [&](auto width) { pack_block<width * kLanes<T>>(i / blocks, i % blocks, widened); });
    if (!projected) return;
    const int64_t panels = divide_up(s_.output_size, kPanel<T>), hidden = s_.hidden_size;
    const Range my_panels = share(s_.directions * panels, thread, count);
    for (int64_t i = my_panels.begin; i < my_panels.end; ++i) {
      const int64_t d = i / panels, column = i % panels * kPanel<T>,
                    width = smaller(s_.output_size - column, kPanel<T>);
      pack_panel<T>({hr(d).rows(column, width, widened), 1, hidden}, hidden, width, projection(d) + column * hidden);
    }
  }

  // Returns the index of a block's first row in a weight matrix, of one gate.
  int64_t first_row(int64_t block, int gate) const { return gate * s_.hidden_size + block * block_units; }

  // Returns a block's rows of a weight matrix, of one gate, as elements without scales: in place, or in `scratch`.
  const T* gate_rows(const StoredMatrix<T>& weight, int64_t block, int gate, T* scratch) const {
    return packing_rows<Factors, T>(weight, first_row(block, gate), units(block), scratch, nullptr, nullptr);
  }

  // The lines that a tile prefetches during its products with the input and with the hidden values.
  struct PrefetchNext {
    PrefetchLines<T> input, hidden;
  };
  // Returns the lines that tile number `tile` prefetches while it multiplies the packed weights of `gates` gates before
  // `gate`, of `width` hidden units: those of the next gates or, after the last gate, of block `next`.
  PrefetchNext prefetch_after(int64_t direction, int gate, int gates, int64_t next, const T* weights, int64_t width,
                              int64_t tile) {
    const bool same = gate < Cell::kGates;
    const T* next_weights = same ? weights : packed(direction, next);
    const int64_t to = same ? gate : 0;
    const auto lines = [&](int64_t first, int64_t matrix_depth) {
      const int64_t stride = matrix_depth * width;
      return PrefetchLines<T>::for_tile(next_weights + first + to * stride, gates * stride,
                                        weights + first + (gate - gates) * stride, tile, matrix_depth);
    };
    return {lines(0, inputs), lines(Cell::kGates * inputs * width, hiddens)};
  }

 private:
  bool frozen() const { return use == WeightUse::kFrozen; }
  int64_t at(int64_t direction, int64_t block) const { return direction * blocks + block; }
  int64_t of_gates() const { return Cell::kGates * block_units; }
  int64_t all_blocks(int64_t vectors) const { return s_.directions * blocks * vectors * block_units; }
  int64_t weights_begin() const { return all_blocks(Cell::kSums + (kScaled<Factors> ? 4 * Cell::kGates : 0)); }
  int64_t projection_begin() const {
    const bool packs_all = use == WeightUse::kPackedBefore || frozen();
    return weights_begin() + (packs_all ? s_.directions * blocks * block_size : 0);
  }
  int64_t projection_size() const { return divide_up(s_.output_size, kPanel<T>) * kPanel<T> * s_.hidden_size; }

  // Packs the weights of one gate of a block into their parts of `target`, the block's packed weights.
  template <int64_t kWidth>
  void pack_gate(int64_t direction, int64_t block, int gate, T* scratch, T* target) {
    const int64_t count = units(block);
    const auto pack_matrix = [&](const StoredMatrix<T>& weight, bool of_hidden, int64_t matrix_depth, T* packed) {
      T* scales = kScaled<Factors> ? scale(direction, block, of_hidden) + gate * block_units : nullptr;
      int32_t* offsets = kScaled<Factors> ? offset(direction, block, of_hidden) + gate * block_units : nullptr;
      const T* rows = packing_rows<Factors>(weight, first_row(block, gate), count, scratch, scales, offsets);
      pack_panel<T, kWidth>({rows, 1, matrix_depth}, matrix_depth, count, packed + gate * matrix_depth * kWidth);
    };
    if (inputs > 0) pack_matrix(ih(direction), false, inputs, target);
    pack_matrix(hh(direction), true, hiddens, target + Cell::kGates * inputs * kWidth);
  }

  // Packs a block's biases, and its weights if the plan packs all weights before the first step.
  template <int64_t kWidth>
  void pack_block(int64_t direction, int64_t block, T* scratch) {
    pack_bias(w_[direction], block * block_units, units(block), bias(direction, block), kWidth);
    if (use != WeightUse::kPackedBefore && !frozen()) return;
    for (int gate = 0; gate < Cell::kGates; ++gate)
      pack_gate<kWidth>(direction, block, gate, scratch, packed(direction, block));
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
  Scratch<T> memory_;  // the arrays of size(), unless the layer is frozen
  T* biases_;          // the first of these arrays, [directions, blocks, kSums, block_units]
};

}  // namespace
}  // namespace fused_rnn::cpu
