// All steps of a recurrent layer backward in one kernel: the gradients of the sums and of the initial states. Those of
// the input and of the weights follow from them by products over all steps, outside.

#pragma once

#include "cuda/persistent/walk.cuh"

namespace fused_rnn::cuda {

template <typename Traits>
class PersistentBackward : PersistentWalk<Traits> {
  using Walk = PersistentWalk<Traits>;
  using Cell = typename Traits::Cell;
  using T = typename Traits::T;
  using Params = typename Traits::Params;
  using Message = typename Handover<Traits>::Message;
  using WorkTile = typename Walk::WorkTile;
  using Walk::cell_, Walk::hidden_, Walk::p_, Walk::coordinates_, Walk::size_, Walk::unit_, Walk::handover_;

 public:
  FUSED_RNN_DEVICE PersistentBackward(const Params& params, char* shared) : Walk(params, shared) {}

  FUSED_RNN_DEVICE void run() {
    this->load_block_weights(
        [&](int first_unit, int units) { return Columns{p_, coordinates_.direction, first_unit, units}; });
    this->each_state([&](int own, int64_t at) {
      hidden_[own] = p_.grad_h_n ? widen(p_.grad_h_n[at]) : 0.0f;
      cell_[own] = Traits::kHasCellState && p_.grad_c_n ? widen(p_.grad_c_n[at]) : 0.0f;
    });
    handover_.prepare();
    this->weights_loaded();
    WorkTile tile = this->tile_at(p_.steps.time - 1, 0);
    Prefetched prefetched;
    prefetch(prefetched, tile);
    // After the first step of the sequence comes one more product, whose result is the gradient of the initial state.
    while (tile.step >= -1) {
      const bool wraps = tile.first + Walk::kSequences >= coordinates_.sequences;
      const int64_t index = tile.step - wraps;
      const int first = wraps ? 0 : tile.first + Walk::kSequences;
      const WorkTile next = index >= 0 ? this->tile_at(index, first) : WorkTile{index, 0, first};
      step(tile, next, prefetched);
      tile = next;
    }
    block_barrier();
    this->each_state([&](int own, int64_t at) {
      p_.grad_h0[at] = narrow<T>(hidden_[own]);
      if constexpr (Traits::kHasCellState) p_.grad_c0[at] = narrow<T>(cell_[own]);
    });
    handover_.finish();
  }

 private:
  // A block's columns of the weights for load_weights, as rows.
  struct Columns {
    const Params& p;
    int direction, first_unit, units;
    static FUSED_RNN_DEVICE Position split(int index, int rows, int /*vectors*/) {
      return {index % rows, index / rows};
    }
    FUSED_RNN_DEVICE uint4 operator()(int unit, int gate, int k) const {
      const int64_t size = p.hidden_size;
      if (unit >= units || k >= size) return {0, 0, 0, 0};
      const T* weight = p.weight_hh[direction] + (gate * size + k) * size + first_unit + unit;
      alignas(16) T values[MmaTraits<T>::kPerVector];
#pragma unroll
      for (int i = 0; i < MmaTraits<T>::kPerVector; ++i) values[i] = weight[i * size];
      return *reinterpret_cast<const uint4*>(values);
    }
  };

  // What forward saved and the gradients of the outputs, for this thread's units of one sequence in one step. What the
  // cell does not have is not loaded.
  struct PrefetchedPair {
    bool runs;
    uint8_t begins, next_begins;  // whether states are replaced before the step, and before the next one
    Pair<T> gates[Cell::kSums], grad_output, hidden_before, cell, cell_before, grad_cell;
  };

  // The same for all pairs of units that the thread finishes.
  struct Prefetched {
    PrefetchedPair pairs[Walk::kPairs];
  };

  FUSED_RNN_DEVICE void prefetch(Prefetched& prefetched, const WorkTile& tile) const {
#pragma unroll
    for (int pair = 0; pair < Walk::kPairs; ++pair) prefetch(prefetched.pairs[pair], tile, this->offset_of(pair));
  }

  FUSED_RNN_DEVICE void prefetch(PrefetchedPair& prefetched, const WorkTile& tile, int offset) const {
    if (!this->finishes(tile.first, offset)) return;
    const int sequence = tile.first + offset;
    prefetched.next_begins = this->load_begins(tile.step + 1, sequence);
    if (tile.step < 0) return;
    prefetched.begins = this->load_begins(tile.step, sequence);
    prefetched.runs = this->runs(tile.step, sequence);
    if (!prefetched.runs) return;
    const bool has_before = tile.step > 0 && this->runs(tile.step - 1, sequence);
    const int64_t row = tile.row + offset, before = has_before ? this->row_of(tile.step - 1, sequence) : 0;
    const int64_t initial = this->state(sequence, coordinates_.first_unit + unit_);
    const T* gates = p_.gates + this->in_saved(row, Cell::kSums);
#pragma unroll
    for (int s = 0; s < Cell::kSums; ++s) prefetched.gates[s] = load_pair(gates + s * size_);
    prefetched.grad_output = p_.grad_output ? load_pair(p_.grad_output + this->in_output(row)) : Pair<T>{};
    if constexpr (Traits::kHasCellState) {
      prefetched.cell = load_pair(p_.cells + this->in_saved(row, 1));
      prefetched.grad_cell = p_.grad_cells ? load_pair(p_.grad_cells + this->in_saved(row, 1)) : Pair<T>{};
      prefetched.cell_before = load_pair(has_before ? p_.cells + this->in_saved(before, 1) : p_.c0 + initial);
    }
    if constexpr (Cell::kReadsHidden)
      prefetched.hidden_before = load_pair(has_before ? p_.output + this->in_output(before) : p_.h0 + initial);
  }

  // Returns where the gradients of a sequence's sums in the step after are. `row` is that of the tile in that step.
  FUSED_RNN_DEVICE Source after(const WorkTile& tile, int64_t row, int sequence) const {
    if (tile.step + 1 == p_.steps.time) return {nullptr, false};
    return handover_.source(tile.step + 1, sequence, [&]() -> Source {
      if (!this->runs(tile.step + 1, sequence)) return {nullptr, false};
      const int64_t after = coordinates_.direction * p_.steps.rows + row + sequence - tile.first;
      return {reinterpret_cast<char*>(p_.grad_gates + after * (Cell::kSums * size_)), true};
    });
  }

  // Computes a tile, and prefetches for the next one.
  FUSED_RNN_DEVICE void step(const WorkTile& tile, const WorkTile& next, Prefetched& prefetched) {
    const Prefetched now = prefetched;
    if (next.step >= -1) prefetch(prefetched, next);
    const int64_t row = tile.step + 1 < p_.steps.time ? this->row_of(tile.step + 1, tile.first) : 0;
    const float* partial =
        this->multiply(tile.first, [&](int sequence, int /*n*/) { return after(tile, row, sequence); });
#pragma unroll
    for (int pair = 0; pair < Walk::kPairs; ++pair) step(tile, now.pairs[pair], partial, this->offset_of(pair));
  }

  // The same after the product, for this thread's units of one sequence.
  FUSED_RNN_DEVICE void step(const WorkTile& tile, const PrefetchedPair& now, const float* partial, int offset) const {
    if (!this->finishes(tile.first, offset)) return;
    const int own = this->own_state(tile.first, offset);
    float carried[1][2] = {{hidden_[own], hidden_[own + 1]}};
    this->add_partial(carried, partial, offset);
    if (now.next_begins) take_replaced(tile, own, offset, carried[0]);
    Message grads[Cell::kSums] = {};
    if (tile.step >= 0 && now.runs) differentiate(now, tile, carried[0], own, offset, grads);
    *reinterpret_cast<float2*>(hidden_ + own) = {carried[0][0], carried[0][1]};
    if (tile.step < 0) return;
    if (now.runs || p_.steps.padded()) {
      T* to = p_.grad_gates + this->in_saved(tile.row + offset, Cell::kSums);
#pragma unroll
      for (int s = 0; s < Cell::kSums; ++s) handover_.publish(to + s * size_, grads[s]);
    }
    Message of_gates[Cell::kGates];
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) of_gates[gate] = grads[Cell::hidden_sum(gate)];
    handover_.publish_in_cluster(tile.step, tile.first + offset, coordinates_.first_unit + unit_, of_gates);
  }

  // Adds the gradients of this thread's states after a step to those of the states that replaced them before the next
  // one, and leaves zero.
  FUSED_RNN_DEVICE void take_replaced(const WorkTile& tile, int own, int offset, float (&hidden)[2]) const {
    const int64_t at = this->in_reset_states(tile.step + 1, tile.first + offset) + coordinates_.first_unit + unit_;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (p_.grad_reset_h) p_.grad_reset_h[at + u] += hidden[u];
      hidden[u] = 0;
      if constexpr (!Traits::kHasCellState) continue;
      if (p_.grad_reset_c) p_.grad_reset_c[at + u] += cell_[own + u];
      cell_[own + u] = 0;
    }
  }

  // Turns the gradients of this thread's hidden values into those of their sums, and into the part of the gradients of
  // the hidden values before that does not pass the weights.
  FUSED_RNN_DEVICE void differentiate(const PrefetchedPair& now, const WorkTile& tile, float (&hidden)[2], int own,
                                      int offset, Message (&grads)[Cell::kSums]) const {
    float gates[Cell::kSums][2], grad_output[2], hidden_before[2] = {};
#pragma unroll
    for (int s = 0; s < Cell::kSums; ++s) widen_pair<T>(now.gates[s], gates[s]);
    widen_pair<T>(now.grad_output, grad_output);
    if constexpr (Cell::kReadsHidden) widen_pair<T>(now.hidden_before, hidden_before);
    float cells[2] = {}, cells_before[2] = {}, grad_cells[2] = {};
    if constexpr (Traits::kHasCellState) {
      widen_pair<T>(now.cell, cells);
      widen_pair<T>(now.cell_before, cells_before);
      widen_pair<T>(now.grad_cell, grad_cells);
    }
    if (now.begins) {
      if constexpr (Cell::kReadsHidden) this->load_replacing(p_.reset_h, tile.step, tile.first + offset, hidden_before);
      if constexpr (Traits::kHasCellState)
        this->load_replacing(p_.reset_c, tile.step, tile.first + offset, cells_before);
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float values[Cell::kSums], before[Cell::kStates] = {hidden_before[u]}, after[Cell::kStates] = {};
#pragma unroll
      for (int s = 0; s < Cell::kSums; ++s) values[s] = gates[s][u];
      hidden[u] += grad_output[u];
      float states[Cell::kStates] = {hidden[u]};
      if constexpr (Traits::kHasCellState) {
        before[1] = cells_before[u], after[1] = cells[u];
        states[1] = cell_[own + u] + grad_cells[u];
      }
      Cell::template backward<typename Traits::Math>(values, before, after, states);
      hidden[u] = states[0];
      if constexpr (Traits::kHasCellState) cell_[own + u] = states[1];
#pragma unroll
      for (int s = 0; s < Cell::kSums; ++s) gates[s][u] = values[s];
    }
#pragma unroll
    for (int s = 0; s < Cell::kSums; ++s) grads[s] = Handover<Traits>::message(narrow_pair<T>(gates[s]));
  }
};

template <typename Traits>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kThreads)
    persistent_backward(const FUSED_RNN_PARAM typename Traits::Params params) {
  if constexpr (Traits::kSplit > 0 ? !kHasHopper : Traits::kCluster && !kHasClusters)
    trap("there is no code for this GPU");
  else
    PersistentBackward<Traits>(params, block_memory<Traits>()).run();
}

}  // namespace fused_rnn::cuda
