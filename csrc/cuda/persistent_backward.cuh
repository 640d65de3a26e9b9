// All steps of a recurrent layer backwards in one kernel: the gradients of the gates' sums and of the initial states. The
// gradients of input and weights follow as products over all steps, outside.

#pragma once

#include "cuda/persistent_walk.cuh"

namespace fused_rnn::cuda {

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster>
class PersistentBackward
    : PersistentWalk<CudaBackward<T, float>, Cell, T, Cell::kGates, kRowTiles, kBatchTiles, kCluster> {
  using Walk = PersistentWalk<CudaBackward<T, float>, Cell, T, Cell::kGates, kRowTiles, kBatchTiles, kCluster>;
  using Part = typename Walk::Part;
  using Walk::cell_, Walk::hidden_, Walk::layout_, Walk::offset_, Walk::p_, Walk::place_, Walk::plan_, Walk::shared_,
      Walk::size_, Walk::unit_;

 public:
  FUSED_RNN_DEVICE PersistentBackward(const CudaBackward<T, float>& params, char* shared) : Walk(params, shared) {}

  FUSED_RNN_DEVICE void run() {
    load_weights<T>(shared_, plan_.row_warps * kRowTiles * kTileRows, layout_.chunks, Cell::kGates, Columns{p_, place_});
    this->each_state([&](int own, int64_t at) {
      hidden_[own] = p_.grad_h_n ? widen(p_.grad_h_n[at]) : 0.0f;
      cell_[own] = Cell::kHasCell && p_.grad_c_n ? widen(p_.grad_c_n[at]) : 0.0f;
    });
    if constexpr (kCluster) {
      this->fill_exchange([](int, int) { return narrow<T>(0.0f); });
      this->meet_group();
    }
    block_barrier();
    Needed needed[kCellsPerThread];
    if (place_.sequences > 0) request(needed, {p_.steps.time - 1, 0});
    // After the first step comes one more product: what it hands on is the gradient of the initial state.
    for (int64_t index = p_.steps.time - 1; index >= -1; --index) {
      for (int first = 0; first < place_.sequences; first += Walk::kSequences) step({index, first}, needed);
      if constexpr (kCluster) this->meet_group();
    }
    block_barrier();
    this->each_state([&](int own, int64_t at) {
      p_.grad_h0[at] = narrow<T>(hidden_[own]);
      if constexpr (Cell::kHasCell) p_.grad_c0[at] = narrow<T>(cell_[own]);
    });
  }

 private:
  // The block's columns of the weights, as rows.
  struct Columns {
    const CudaBackward<T, float>& p;
    const Place& place;
    static FUSED_RNN_DEVICE Position split(int index, int rows, int /*vectors*/) { return {index % rows, index / rows}; }
    FUSED_RNN_DEVICE uint4 operator()(int unit, int gate, int k) const {
      const int64_t size = p.hidden_size;
      if (unit >= place.units || k >= size) return {0, 0, 0, 0};
      const T* weight = p.weight_hh[place.direction] + (gate * size + k) * size + place.first_unit + unit;
      alignas(16) T values[Number<T>::kPerVector];
#pragma unroll
      for (int i = 0; i < Number<T>::kPerVector; ++i) values[i] = weight[i * size];
      return *reinterpret_cast<const uint4*>(values);
    }
  };

  // What backward needs of forward and of the gradients from above, for one unit and sequence in one step.
  struct Needed {
    int64_t row;
    bool runs;
    T gates[4], grad_output, previous_hidden;
    float cell, previous_cell, grad_cell;
  };

  FUSED_RNN_DEVICE void request(Needed (&needed)[kCellsPerThread], const Part& part) const {
    const int64_t t = this->time_of(part.index);
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i) {
      if (!this->has_cell(i, part.first)) continue;
      const int sequence = place_.first_sequence + part.first + offset_[i];
      needed[i].runs = p_.steps.runs(t, sequence);
      needed[i].row = p_.steps.row(t, sequence);
      if (needed[i].runs) fetch(needed[i], i, part, sequence);
    }
  }

  FUSED_RNN_DEVICE void fetch(Needed& needed, int i, const Part& part, int sequence) const {
    const int64_t before = part.index > 0 ? this->time_of(part.index - 1) : 0;
    const bool has_before = part.index > 0 && p_.steps.runs(before, sequence);
    const int64_t row = has_before ? p_.steps.row(before, sequence) : 0;
    const int64_t initial = this->state(part.first + offset_[i], place_.first_unit + unit_[i]);
    const T* gates = p_.gates + this->in_saved(needed.row, i, 4);
#pragma unroll
    for (int s = 0; s < 4; ++s) needed.gates[s] = gates[s * size_];
    needed.grad_output = p_.grad_output ? p_.grad_output[this->in_output(needed.row, i)] : narrow<T>(0.0f);
    if constexpr (Cell::kHasCell) {
      needed.cell = p_.cells[this->in_saved(needed.row, i, 1)];
      needed.previous_cell = has_before ? p_.cells[this->in_saved(row, i, 1)] : widen(p_.c0[initial]);
      needed.grad_cell = p_.grad_cells ? p_.grad_cells[this->in_saved(needed.row, i, 1)] : 0.0f;
    } else {
      needed.previous_hidden = has_before ? p_.output[this->in_output(row, i)] : p_.h0[initial];
    }
  }

  // Where the gradients of the step after this one are.
  FUSED_RNN_DEVICE const T* after(int64_t index, int own, bool& waits) const {
    const int sequence = place_.first_sequence + own;
    if (index + 1 == p_.steps.time) return nullptr;
    const int64_t t = this->time_of(index + 1);
    waits = p_.steps.runs(t, sequence);
    return waits ? p_.grad_gates + (place_.direction * p_.steps.rows + p_.steps.row(t, sequence)) * (4 * size_)
                 : nullptr;
  }

  // Takes a step back, and fetches for the following one.
  FUSED_RNN_DEVICE void step(const Part& part, Needed (&needed)[kCellsPerThread]) {
    Needed now[kCellsPerThread];
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i) now[i] = needed[i];
    const bool wraps = part.first + Walk::kSequences >= place_.sequences;
    const Part next = {part.index - wraps, wraps ? 0 : part.first + Walk::kSequences};
    if (next.index >= 0) request(needed, next);
    const float* partial = this->multiply(part.first, (part.index + 1) & 1, [&](int own, bool& waits) {
      return after(part.index, own, waits);
    });
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i)
      if (this->has_cell(i, part.first)) {
        const int own = this->own_state(i, part.first);
        float carried[1] = {hidden_[own]};
        this->add_partial(carried, partial, i);
        hidden_[own] = carried[0];
        if (part.index >= 0) finish(now[i], i, own, part);
      }
  }

  // Steps one unit and sequence back, and hands on the gradients of its sums.
  FUSED_RNN_DEVICE void finish(const Needed& now, int i, int own, const Part& part) const {
    float grads[4] = {0, 0, 0, 0};
    if (now.runs) {
#pragma unroll
      for (int s = 0; s < 4; ++s) grads[s] = widen(now.gates[s]);
      float grad_hidden = hidden_[own] + widen(now.grad_output);
      if constexpr (Cell::kHasCell) {
        float grad_cell = cell_[own] + now.grad_cell;
        Cell::backward(grads, now.previous_cell, now.cell, grad_hidden, grad_cell);
        cell_[own] = grad_cell;
      } else {
        float none = 0;
        Cell::backward(grads, widen(now.previous_hidden), none, grad_hidden, none);
      }
      hidden_[own] = grad_hidden;
    }
    if (now.runs || p_.steps.padded()) {
      T* to = p_.grad_gates + this->in_saved(now.row, i, 4);
#pragma unroll
      for (int s = 0; s < 4; ++s) publish(to + s * size_, grads[s]);
    }
    if constexpr (kCluster) {
      T* mine = this->exchange(part.index & 1, part.first + offset_[i]) + place_.first_unit + unit_[i];
      const int segment = layout_.chunks / Cell::kGates * kChunkBytes / int(sizeof(T));
#pragma unroll
      for (int gate = 0; gate < Cell::kGates; ++gate)
        this->hand_on(mine + gate * segment, narrow<T>(grads[Cell::saved_of(gate)]));
    }
  }
};

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPersistentThreads)
    persistent_backward(const FUSED_RNN_PARAM CudaBackward<T, float> params) {
  PersistentBackward<Cell, T, kRowTiles, kBatchTiles, kCluster>(params, shared_memory()).run();
}

}  // namespace fused_rnn::cuda
