// All steps of a recurrent layer backwards in one kernel: the gradients of the gates' sums and of the initial states.
// The gradients of input and weights follow as products over all steps, outside.

#pragma once

#include "cuda/persistent/walk.cuh"

namespace fused_rnn::cuda {

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster, int kChunksInRegisters>
class PersistentBackward : PersistentWalk<PersistentBackwardParams<T, float>, Cell, T, Cell::kGates, kRowTiles,
                                          kBatchTiles, kCluster, kChunksInRegisters> {
  using Walk = PersistentWalk<PersistentBackwardParams<T, float>, Cell, T, Cell::kGates, kRowTiles, kBatchTiles,
                              kCluster, kChunksInRegisters>;
  using Part = typename Walk::Part;
  using Math = ActivationOf<T>;
  using Walk::cell_, Walk::hidden_, Walk::layout_, Walk::offset_, Walk::p_, Walk::coordinates_, Walk::plan_,
      Walk::shared_, Walk::size_, Walk::unit_, Walk::weights_;

 public:
  FUSED_RNN_DEVICE PersistentBackward(const PersistentBackwardParams<T, float>& params, char* shared)
      : Walk(params, shared) {}

  FUSED_RNN_DEVICE void run() {
    load_weights<T>(shared_, kRowTiles * kTileRows, layout_.chunks, Cell::kGates, Columns{p_, coordinates_});
    this->each_state([&](int own, int64_t at) {
      hidden_[own] = p_.grad_h_n ? widen(p_.grad_h_n[at]) : 0.0f;
      cell_[own] = Cell::kHasCell && p_.grad_c_n ? widen(p_.grad_c_n[at]) : 0.0f;
    });
    if constexpr (kCluster) {
      this->clear_exchange();
      cluster_barrier();
    }
    block_barrier();
    weights_.hold(shared_, layout_.chunks, coordinates_);
    Part part = this->part_at(p_.steps.time - 1, 0);
    Needed needed;
    request(needed, part);
    // After the first step comes one more product: what it hands on is the gradient of the initial state.
    while (part.index >= -1) {
      const bool wraps = part.first + Walk::kSequences >= coordinates_.sequences;
      const int64_t index = part.index - wraps;
      const int first = wraps ? 0 : part.first + Walk::kSequences;
      const Part next = index >= 0 ? this->part_at(index, first) : Part{index, 0, first};
      step(part, next, needed);
      part = next;
    }
    block_barrier();
    this->each_state([&](int own, int64_t at) {
      p_.grad_h0[at] = narrow<T>(hidden_[own]);
      if constexpr (Cell::kHasCell) p_.grad_c0[at] = narrow<T>(cell_[own]);
    });
    if constexpr (kCluster) cluster_barrier();
  }

 private:
  // The block's columns of the weights, as rows.
  struct Columns {
    const PersistentBackwardParams<T, float>& p;
    const BlockCoordinates& coordinates;
    static FUSED_RNN_DEVICE Position split(int index, int rows, int /*vectors*/) {
      return {index % rows, index / rows};
    }
    FUSED_RNN_DEVICE uint4 operator()(int unit, int gate, int k) const {
      const int64_t size = p.hidden_size;
      if (unit >= coordinates.units || k >= size) return {0, 0, 0, 0};
      const T* weight = p.weight_hh[coordinates.direction] + (gate * size + k) * size + coordinates.first_unit + unit;
      alignas(16) T values[MmaTraits<T>::kPerVector];
#pragma unroll
      for (int i = 0; i < MmaTraits<T>::kPerVector; ++i) values[i] = weight[i * size];
      return *reinterpret_cast<const uint4*>(values);
    }
  };

  // What backward needs of forward and of the gradients from above, for the thread's units in one step.
  struct Needed {
    bool runs;
    Pair<T> gates[4], grad_output, previous_hidden;
    float2 cell, previous_cell, grad_cell;
  };

  FUSED_RNN_DEVICE void request(Needed& needed, const Part& part) const {
    if (!this->has_cell(part.first)) return;
    const int sequence = part.first + offset_;
    needed.runs = this->runs(part.index, sequence);
    if (!needed.runs) return;
    const bool has_before = part.index > 0 && this->runs(part.index - 1, sequence);
    const int64_t row = part.row + offset_, before = has_before ? this->row_of(part.index - 1, sequence) : 0;
    const int64_t initial = this->state(sequence, coordinates_.first_unit + unit_);
    const T* gates = p_.gates + this->in_saved(row, 4);
#pragma unroll
    for (int s = 0; s < 4; ++s) needed.gates[s] = load_pair(gates + s * size_);
    needed.grad_output = p_.grad_output ? load_pair(p_.grad_output + this->in_output(row)) : Pair<T>{};
    if constexpr (Cell::kHasCell) {
      needed.cell = load_states(p_.cells + this->in_saved(row, 1));
      needed.grad_cell = p_.grad_cells ? load_states(p_.grad_cells + this->in_saved(row, 1)) : float2{0, 0};
      if (has_before) {
        needed.previous_cell = load_states(p_.cells + this->in_saved(before, 1));
      } else {
        float cell[2];
        widen_pair<T>(load_pair(p_.c0 + initial), cell);
        needed.previous_cell = {cell[0], cell[1]};
      }
    } else {
      needed.previous_hidden = load_pair(has_before ? p_.output + this->in_output(before) : p_.h0 + initial);
    }
  }

  static FUSED_RNN_DEVICE float2 load_states(const float* from) { return *reinterpret_cast<const float2*>(from); }

  // Where the gradients of the step after this one are.
  FUSED_RNN_DEVICE Source after(const Part& part, int64_t row, int sequence) const {
    if (part.index + 1 == p_.steps.time) return {nullptr, false};
    if constexpr (kCluster) return {this->exchange(part.index + 1, sequence), true};
    if (!this->runs(part.index + 1, sequence)) return {nullptr, false};
    return {reinterpret_cast<char*>(
                p_.grad_gates + (coordinates_.direction * p_.steps.rows + row + sequence - part.first) * (4 * size_)),
            true};
  }

  // Takes a step back, and fetches for the next one.
  FUSED_RNN_DEVICE void step(const Part& part, const Part& next, Needed& needed) {
    const Needed now = needed;
    if (next.index >= 0) request(needed, next);
    const int64_t row = part.index + 1 < p_.steps.time ? this->row_of(part.index + 1, part.first) : 0;
    const float* partial = this->multiply(
        part.first, [&](int sequence) { return after(part, row, sequence); },
        [&](int gate) { return Cell::saved_of(gate) * size_; });
    if (!this->has_cell(part.first)) return;
    const int own = this->own_state(part.first);
    float carried[1][2] = {{hidden_[own], hidden_[own + 1]}};
    this->add_partial(carried, partial);
    Pair<T> grads[4] = {};
    if (part.index >= 0 && now.runs) differentiate(now, carried[0], own, grads);
    *reinterpret_cast<float2*>(hidden_ + own) = {carried[0][0], carried[0][1]};
    if (part.index < 0) return;
    if (now.runs || p_.steps.padded()) {
      T* to = p_.grad_gates + this->in_saved(part.row + offset_, 4);
#pragma unroll
      for (int s = 0; s < 4; ++s) store_fresh(to + s * size_, grads[s]);
    }
    if constexpr (kCluster)
#pragma unroll
      for (int gate = 0; gate < Cell::kGates; ++gate)
        this->hand_on(this->exchange(part.index, part.first + offset_, gate, coordinates_.first_unit + unit_),
                      grads[Cell::saved_of(gate)]);
  }

  // Turns the gradients of the thread's hidden values into those of their gates' sums, and into what goes past the
  // weights to the hidden values before.
  FUSED_RNN_DEVICE void differentiate(const Needed& now, float (&hidden)[2], int own, Pair<T> (&grads)[4]) const {
    float gates[4][2], grad_output[2], previous_hidden[2] = {};
#pragma unroll
    for (int s = 0; s < 4; ++s) widen_pair<T>(now.gates[s], gates[s]);
    widen_pair<T>(now.grad_output, grad_output);
    if constexpr (!Cell::kHasCell) widen_pair<T>(now.previous_hidden, previous_hidden);
    const float cells[2] = {now.cell.x, now.cell.y}, before[2] = {now.previous_cell.x, now.previous_cell.y};
    const float grad_cells[2] = {now.grad_cell.x, now.grad_cell.y};
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float sums[4] = {gates[0][u], gates[1][u], gates[2][u], gates[3][u]};
      hidden[u] += grad_output[u];
      if constexpr (Cell::kHasCell) {
        float grad_cell = cell_[own + u] + grad_cells[u];
        Cell::template backward<Math>(sums, before[u], cells[u], hidden[u], grad_cell);
        cell_[own + u] = grad_cell;
      } else {
        float none = 0;
        Cell::template backward<Math>(sums, previous_hidden[u], none, hidden[u], none);
      }
#pragma unroll
      for (int s = 0; s < 4; ++s) gates[s][u] = sums[s];
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) grads[s] = handed_on(narrow_pair<T>(gates[s]));
  }
};

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster, int kChunksInRegisters>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kThreads)
    persistent_backward(const FUSED_RNN_PARAM PersistentBackwardParams<T, float> params) {
  if constexpr (!kCluster || kHasClusters)
    PersistentBackward<Cell, T, kRowTiles, kBatchTiles, kCluster, kChunksInRegisters>(params, shared_memory()).run();
  else
    trap("there is no code for clusters");
}

}  // namespace fused_rnn::cuda
