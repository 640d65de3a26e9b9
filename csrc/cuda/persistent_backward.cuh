// All steps of a recurrent layer backwards in one kernel: the gradients of the gates' sums and of the initial states. The
// gradients of input and weights follow as products over all steps, outside.

#pragma once

#include "cuda/persistent_walk.cuh"

namespace fused_rnn::cuda {

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster>
class PersistentBackward
    : PersistentWalk<CudaBackward<T, float>, Cell, T, Cell::kGates, kRowTiles, kBatchTiles, kCluster> {
  using Walk = PersistentWalk<CudaBackward<T, float>, Cell, T, Cell::kGates, kRowTiles, kBatchTiles, kCluster>;
  using Cells = typename Walk::Cells;
  using Walk::cell_, Walk::hidden_, Walk::layout_, Walk::p_, Walk::place_, Walk::plan_, Walk::shared_;

 public:
  FUSED_RNN_DEVICE PersistentBackward(const CudaBackward<T, float>& params, char* shared) : Walk(params, shared) {}

  FUSED_RNN_DEVICE void run() {
    load_weights<T>(shared_, plan_.row_warps * kRowTiles * kTileRows, layout_.chunks, Cell::kGates, Columns{p_, place_});
    this->each_state([&](int64_t own, int64_t at) {
      hidden_[own] = p_.grad_h_n ? widen(p_.grad_h_n[at]) : 0.0f;
      cell_[own] = Cell::kHasCell && p_.grad_c_n ? widen(p_.grad_c_n[at]) : 0.0f;
    });
    if constexpr (kCluster) this->fill_exchange([](int64_t, int64_t) { return narrow<T>(0.0f); });
    this->meet();
    // After the first step comes one more product: what it hands on is the gradient of the initial state.
    for (int64_t index = p_.steps.time - 1; index >= -1; --index) {
      for (int64_t first = 0; first < place_.sequences; first += Walk::kSequences) step(index, first);
      if constexpr (kCluster) this->meet();
    }
    block_barrier();
    this->each_state([&](int64_t own, int64_t at) {
      p_.grad_h0[at] = narrow<T>(hidden_[own]);
      if constexpr (Cell::kHasCell) p_.grad_c0[at] = narrow<T>(cell_[own]);
    });
  }

 private:
  // The block's columns of the weights, as rows.
  struct Columns {
    const CudaBackward<T, float>& p;
    const Place& place;
    static FUSED_RNN_DEVICE Position split(int64_t index, int64_t rows, int64_t /*vectors*/) {
      return {index % rows, index / rows};
    }
    FUSED_RNN_DEVICE uint4 operator()(int64_t unit, int64_t gate, int64_t k) const {
      const int64_t size = p.hidden_size;
      if (unit >= place.units || k >= size) return {0, 0, 0, 0};
      const T* weight = p.weight_hh[place.direction] + (gate * size + k) * size + place.first_unit + unit;
      alignas(16) T values[Number<T>::kPerVector];
#pragma unroll
      for (int i = 0; i < Number<T>::kPerVector; ++i) values[i] = weight[i * size];
      return *reinterpret_cast<const uint4*>(values);
    }
  };

  // What backward needs of forward and of the gradients from above, for one unit and sequence.
  struct Needed {
    T gates[4], grad_output, previous_hidden;
    float cell, previous_cell, grad_cell;
  };

  FUSED_RNN_DEVICE void request(Needed& needed, const Cells& cells, int i, int64_t index) const {
    const int64_t sequence = place_.first_sequence + cells.sequence[i], unit = place_.first_unit + cells.unit[i];
    const int64_t before = index > 0 ? this->time_of(index - 1) : 0;
    const bool has_before = index > 0 && p_.steps.runs(before, sequence);
    const int64_t row = has_before ? p_.steps.row(before, sequence) : 0;
#pragma unroll
    for (int s = 0; s < 4; ++s) needed.gates[s] = p_.gates[this->in_saved(cells, i, 4) + s * p_.hidden_size];
    needed.grad_output = p_.grad_output ? p_.grad_output[this->in_output(cells, i)] : narrow<T>(0.0f);
    if constexpr (Cell::kHasCell) {
      needed.cell = p_.cells[this->in_saved(cells, i, 1)];
      needed.previous_cell = has_before ? p_.cells[(place_.direction * p_.steps.rows + row) * p_.hidden_size + unit]
                                        : widen(p_.c0[this->state(cells.sequence[i], unit)]);
      needed.grad_cell = p_.grad_cells ? p_.grad_cells[this->in_saved(cells, i, 1)] : 0.0f;
    } else {
      needed.previous_hidden = has_before
                                   ? p_.output[(row * p_.directions + place_.direction) * p_.hidden_size + unit]
                                   : p_.h0[this->state(cells.sequence[i], unit)];
    }
  }

  FUSED_RNN_DEVICE void step(int64_t index, int64_t first) {
    const int64_t t = index >= 0 ? this->time_of(index) : -1;
    Cells cells;
    this->place_cells(cells, t, first);
    Needed needed[kCellsPerThread];
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i)
      if (cells.runs[i]) request(needed[i], cells, i, index);
    const float* partial = this->multiply(first, (index + 1) & 1, [&](int64_t own, bool& waits) -> const T* {
      const int64_t sequence = place_.first_sequence + own;
      if (index + 1 == p_.steps.time) return nullptr;
      const int64_t following = this->time_of(index + 1);
      if (!p_.steps.runs(following, sequence)) return nullptr;
      waits = true;
      return p_.grad_gates +
             (place_.direction * p_.steps.rows + p_.steps.row(following, sequence)) * 4 * p_.hidden_size;
    });
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i)
      if (cells.there[i]) {
        const int64_t own = cells.sequence[i] * plan_.units + cells.unit[i];
        hidden_[own] += this->sum_of(partial, cells.unit[i], cells.sequence[i] - first);
        if (index >= 0) finish(cells, i, needed[i], own, index);
      }
  }

  // Steps one unit and sequence back, and hands on the gradients of its sums.
  FUSED_RNN_DEVICE void finish(const Cells& cells, int i, const Needed& needed, int64_t own, int64_t index) const {
    float grads[4] = {0, 0, 0, 0};
    if (cells.runs[i]) {
#pragma unroll
      for (int s = 0; s < 4; ++s) grads[s] = widen(needed.gates[s]);
      float grad_hidden = hidden_[own] + widen(needed.grad_output);
      if constexpr (Cell::kHasCell) {
        float grad_cell = cell_[own] + needed.grad_cell;
        Cell::backward(grads, needed.previous_cell, needed.cell, grad_hidden, grad_cell);
        cell_[own] = grad_cell;
      } else {
        float none = 0;
        Cell::backward(grads, widen(needed.previous_hidden), none, grad_hidden, none);
      }
      hidden_[own] = grad_hidden;
    }
    if (cells.runs[i] || p_.steps.padded())
#pragma unroll
      for (int s = 0; s < 4; ++s)
        publish(p_.grad_gates + this->in_saved(cells, i, 4) + s * p_.hidden_size, grads[s]);
    if constexpr (kCluster) {
      T* mine = this->exchange(index & 1, cells.sequence[i]) + place_.first_unit + cells.unit[i];
      const int64_t segment = layout_.chunks / Cell::kGates * kChunkBytes / sizeof(T);
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
