// All steps of a recurrent layer in one kernel.

#pragma once

#include "cuda/persistent_walk.cuh"

namespace fused_rnn::cuda {

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster>
class PersistentForward
    : PersistentWalk<CudaForward<T, float>, Cell, T, 1, kRowTiles, kBatchTiles, kCluster> {
  using Walk = PersistentWalk<CudaForward<T, float>, Cell, T, 1, kRowTiles, kBatchTiles, kCluster>;
  using Cells = typename Walk::Cells;
  using Walk::cell_, Walk::hidden_, Walk::layout_, Walk::p_, Walk::place_, Walk::plan_, Walk::shared_;

 public:
  FUSED_RNN_DEVICE PersistentForward(const CudaForward<T, float>& params, char* shared)
      : Walk(params, shared), bias_(reinterpret_cast<float*>(shared + layout_.biases)) {}

  FUSED_RNN_DEVICE void run() {
    load_weights<T>(shared_, plan_.row_warps * kRowTiles * kTileRows, layout_.chunks, 1, Rows{p_, place_, plan_.units});
    load_biases();
    this->each_state([&](int64_t own, int64_t at) {
      hidden_[own] = widen(p_.h0[at]);
      if constexpr (Cell::kHasCell) cell_[own] = widen(p_.c0[at]);
    });
    if constexpr (kCluster)
      this->fill_exchange([&](int64_t sequence, int64_t unit) { return p_.h0[this->state(sequence, unit)]; });
    this->meet();
    for (int64_t index = 0; index < p_.steps.time; ++index) {
      for (int64_t first = 0; first < place_.sequences; first += Walk::kSequences) step(index, first);
      if constexpr (kCluster) this->meet();
    }
    block_barrier();
    this->each_state([&](int64_t own, int64_t at) {
      p_.h_n[at] = narrow<T>(hidden_[own]);
      if constexpr (Cell::kHasCell) p_.c_n[at] = narrow<T>(cell_[own]);
    });
  }

 private:
  // The block's rows of the weights: gate by gate, `stride` of each.
  struct Rows {
    const CudaForward<T, float>& p;
    const Place& place;
    int64_t stride;
    static FUSED_RNN_DEVICE Position split(int64_t index, int64_t /*rows*/, int64_t vectors) {
      return {index / vectors, index % vectors};
    }
    FUSED_RNN_DEVICE uint4 operator()(int64_t row, int64_t /*segment*/, int64_t k) const {
      const int64_t gate = row / stride, unit = row % stride, size = p.hidden_size;
      if (gate >= Cell::kGates || unit >= place.units || k >= size) return {0, 0, 0, 0};
      const T* weight = p.weight_hh[place.direction] + (gate * size + place.first_unit + unit) * size + k;
      return *reinterpret_cast<const uint4*>(weight);
    }
  };

  // [4][plan.units]: the biases of each of the cell's four sums.
  FUSED_RNN_DEVICE void load_biases() const {
    const T* ih = p_.bias_ih[place_.direction];
    const T* hh = p_.bias_hh[place_.direction];
    for (int index = threadIdx.x; index < 4 * plan_.units; index += blockDim.x) {
      const int sum = index / plan_.units, unit = index % plan_.units;
      const bool there = ih != nullptr && unit < place_.units;
      const auto at = [&](const T* bias, int gate) {
        return there ? widen(bias[gate * p_.hidden_size + place_.first_unit + unit]) : 0.0f;
      };
      const bool split = Cell::kSplitBias && sum >= 2;
      bias_[index] = split ? at(sum == 2 ? ih : hh, 2) : at(ih, sum) + at(hh, sum);
    }
  }

  FUSED_RNN_DEVICE void step(int64_t index, int64_t first) {
    const int64_t t = this->time_of(index);
    Cells cells;
    this->place_cells(cells, t, first);
    // The input's part of the sums starts on its way long before it is needed.
    T input[kCellsPerThread][Cell::kGates];
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i)
#pragma unroll
      for (int gate = 0; gate < Cell::kGates; ++gate)
        if (cells.runs[i]) input[i][gate] = p_.gates[this->in_saved(cells, i, 4) + gate * p_.hidden_size];
    const float* partial = this->multiply(first, index & 1, [&](int64_t own, bool& waits) -> const T* {
      const int64_t sequence = place_.first_sequence + own;
      if (!p_.steps.runs(t, sequence)) return nullptr;
      const int64_t before = index > 0 ? this->time_of(index - 1) : t;
      waits = index > 0 && p_.steps.runs(before, sequence);
      if (!waits) return p_.h0 + this->state(own, 0);
      return p_.output + (p_.steps.row(before, sequence) * p_.directions + place_.direction) * p_.hidden_size;
    });
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i)
      if (cells.there[i]) {
        const int64_t own = cells.sequence[i] * plan_.units + cells.unit[i];
        if (cells.runs[i]) finish(cells, i, input[i], partial, cells.sequence[i] - first, own);
        else if (p_.steps.padded()) blank(cells, i);
        if constexpr (kCluster)
          if (index + 1 < p_.steps.time)
            this->hand_on(this->exchange((index + 1) & 1, cells.sequence[i]) + place_.first_unit + cells.unit[i],
                          narrow<T>(hidden_[own]));
      }
  }

  // Adds up the sums of one unit and sequence, and steps it.
  FUSED_RNN_DEVICE void finish(const Cells& cells, int i, const T (&input)[Cell::kGates], const float* partial,
                               int64_t offset, int64_t own) const {
    float sums[4], cell = Cell::kHasCell ? cell_[own] : 0.0f;
#pragma unroll
    for (int s = 0; s < 4; ++s) sums[s] = bias_[s * plan_.units + cells.unit[i]];
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      sums[gate] += widen(input[gate]);
      sums[Cell::saved_of(gate)] += this->sum_of(partial, gate * plan_.units + cells.unit[i], offset);
    }
    // As the other blocks see it: rounded.
    const float hidden = widen(narrow<T>(Cell::forward(sums, hidden_[own], cell)));
    hidden_[own] = hidden;
    publish(p_.output + this->in_output(cells, i), hidden);
    if constexpr (Cell::kHasCell) cell_[own] = cell;
    if (!p_.keep) return;
#pragma unroll
    for (int s = 0; s < 4; ++s)
      p_.gates[this->in_saved(cells, i, 4) + s * p_.hidden_size] = narrow<T>(sums[s]);
    if constexpr (Cell::kHasCell) p_.cells[this->in_saved(cells, i, 1)] = cell;
  }

  // Past the end of a sequence there are zeros.
  FUSED_RNN_DEVICE void blank(const Cells& cells, int i) const {
    publish(p_.output + this->in_output(cells, i), 0.0f);
    if constexpr (Cell::kHasCell)
      if (p_.keep) p_.cells[this->in_saved(cells, i, 1)] = 0.0f;
  }

  float* const bias_;  // [4][plan.units]
};

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPersistentThreads)
    persistent_forward(const FUSED_RNN_PARAM CudaForward<T, float> params) {
  PersistentForward<Cell, T, kRowTiles, kBatchTiles, kCluster>(params, shared_memory()).run();
}

}  // namespace fused_rnn::cuda
