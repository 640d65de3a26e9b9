// All steps of a recurrent layer in one kernel.

#pragma once

#include "cuda/persistent_walk.cuh"

namespace fused_rnn::cuda {

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster>
class PersistentForward : PersistentWalk<CudaForward<T, float>, Cell, T, 1, kRowTiles, kBatchTiles, kCluster> {
  using Walk = PersistentWalk<CudaForward<T, float>, Cell, T, 1, kRowTiles, kBatchTiles, kCluster>;
  using Part = typename Walk::Part;
  using Walk::cell_, Walk::hidden_, Walk::layout_, Walk::offset_, Walk::p_, Walk::place_, Walk::plan_, Walk::shared_,
      Walk::size_, Walk::unit_;

 public:
  FUSED_RNN_DEVICE PersistentForward(const CudaForward<T, float>& params, char* shared)
      : Walk(params, shared), bias_(reinterpret_cast<float*>(shared + layout_.biases)) {}

  FUSED_RNN_DEVICE void run() {
    load_weights<T>(shared_, plan_.row_warps * kRowTiles * kTileRows, layout_.chunks, 1, Rows{p_, place_, plan_.units});
    load_biases();
    this->each_state([&](int own, int64_t at) {
      hidden_[own] = widen(p_.h0[at]);
      if constexpr (Cell::kHasCell) cell_[own] = widen(p_.c0[at]);
    });
    if constexpr (kCluster) {
      this->fill_exchange([&](int sequence, int unit) { return p_.h0[this->state(sequence, unit)]; });
      this->meet_group();
    }
    block_barrier();
    Needed needed[kCellsPerThread];
    if (place_.sequences > 0 && p_.steps.time > 0) request(needed, {0, 0});
    for (int64_t index = 0; index < p_.steps.time; ++index) {
      for (int first = 0; first < place_.sequences; first += Walk::kSequences) step({index, first}, needed);
      if constexpr (kCluster) this->meet_group();
    }
    block_barrier();
    this->each_state([&](int own, int64_t at) {
      p_.h_n[at] = narrow<T>(hidden_[own]);
      if constexpr (Cell::kHasCell) p_.c_n[at] = narrow<T>(cell_[own]);
    });
  }

 private:
  // The block's rows of the weights: gate by gate, `stride` of each.
  struct Rows {
    const CudaForward<T, float>& p;
    const Place& place;
    int stride;
    static FUSED_RNN_DEVICE Position split(int index, int /*rows*/, int vectors) {
      return {index / vectors, index % vectors};
    }
    FUSED_RNN_DEVICE uint4 operator()(int row, int /*segment*/, int k) const {
      const int gate = row / stride, unit = row % stride;
      if (gate >= Cell::kGates || unit >= place.units || k >= p.hidden_size) return {0, 0, 0, 0};
      const int64_t of_weight = gate * p.hidden_size + place.first_unit + unit;
      return *reinterpret_cast<const uint4*>(p.weight_hh[place.direction] + of_weight * p.hidden_size + k);
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
        return there ? widen(bias[gate * size_ + place_.first_unit + unit]) : 0.0f;
      };
      const bool split = Cell::kSplitBias && sum >= 2;
      bias_[index] = split ? at(sum == 2 ? ih : hh, 2) : at(ih, sum) + at(hh, sum);
    }
  }

  // The input's part of the sums of one unit and sequence in one step.
  struct Needed {
    int64_t row;
    bool runs;
    T input[Cell::kGates];
  };

  FUSED_RNN_DEVICE void request(Needed (&needed)[kCellsPerThread], const Part& part) const {
    const int64_t t = this->time_of(part.index);
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i) {
      if (!this->has_cell(i, part.first)) continue;
      const int sequence = place_.first_sequence + part.first + offset_[i];
      needed[i].runs = p_.steps.runs(t, sequence);
      needed[i].row = p_.steps.row(t, sequence);
      if (!needed[i].runs) continue;
      const T* input = p_.gates + this->in_saved(needed[i].row, i, 4);
#pragma unroll
      for (int gate = 0; gate < Cell::kGates; ++gate) needed[i].input[gate] = input[gate * size_];
    }
  }

  // Where the hidden values before a step of a sequence are.
  FUSED_RNN_DEVICE const T* before(int64_t index, int own, bool& waits) const {
    const int sequence = place_.first_sequence + own;
    if (!p_.steps.runs(this->time_of(index), sequence)) return nullptr;
    if (index > 0) {
      const int64_t t = this->time_of(index - 1);
      waits = p_.steps.runs(t, sequence);
      if (waits) return p_.output + (p_.steps.row(t, sequence) * this->directions_ + place_.direction) * size_;
    }
    return p_.h0 + this->state(own, 0);
  }

  // Takes a step, and fetches for the following one.
  FUSED_RNN_DEVICE void step(const Part& part, Needed (&needed)[kCellsPerThread]) {
    Needed now[kCellsPerThread];
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i) now[i] = needed[i];
    const bool wraps = part.first + Walk::kSequences >= place_.sequences;
    const Part next = {part.index + wraps, wraps ? 0 : part.first + Walk::kSequences};
    if (next.index < p_.steps.time) request(needed, next);
    const float* partial = this->multiply(part.first, part.index & 1, [&](int own, bool& waits) {
      return before(part.index, own, waits);
    });
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i)
      if (this->has_cell(i, part.first)) {
        const int own = this->own_state(i, part.first);
        if (now[i].runs)
          finish(now[i], i, partial, own);
        else if (p_.steps.padded())
          blank(now[i].row, i);
        if constexpr (kCluster)
          if (part.index + 1 < p_.steps.time)
            this->hand_on(this->exchange((part.index + 1) & 1, part.first + offset_[i]) + place_.first_unit + unit_[i],
                          narrow<T>(hidden_[own]));
      }
  }

  // Adds up the sums of one unit and sequence, and steps it.
  FUSED_RNN_DEVICE void finish(const Needed& now, int i, const float* partial, int own) const {
    float sums[4], recurrent[Cell::kGates], cell = Cell::kHasCell ? cell_[own] : 0.0f;
#pragma unroll
    for (int s = 0; s < 4; ++s) sums[s] = bias_[s * plan_.units + unit_[i]];
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      sums[gate] += widen(now.input[gate]);
      recurrent[gate] = 0;
    }
    this->add_partial(recurrent, partial, i);
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) sums[Cell::saved_of(gate)] += recurrent[gate];
    // As the other blocks see it: rounded.
    const float hidden = widen(narrow<T>(Cell::forward(sums, hidden_[own], cell)));
    publish(p_.output + this->in_output(now.row, i), hidden);
    hidden_[own] = hidden;
    if constexpr (Cell::kHasCell) cell_[own] = cell;
    if (!p_.keep) return;
    T* kept = p_.gates + this->in_saved(now.row, i, 4);
#pragma unroll
    for (int s = 0; s < 4; ++s) kept[s * size_] = narrow<T>(sums[s]);
    if constexpr (Cell::kHasCell) p_.cells[this->in_saved(now.row, i, 1)] = cell;
  }

  // Past the end of a sequence there are zeros.
  FUSED_RNN_DEVICE void blank(int64_t row, int i) const {
    publish(p_.output + this->in_output(row, i), 0.0f);
    if constexpr (Cell::kHasCell)
      if (p_.keep) p_.cells[this->in_saved(row, i, 1)] = 0.0f;
  }

  float* const bias_;  // [4][plan.units]
};

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPersistentThreads)
    persistent_forward(const FUSED_RNN_PARAM CudaForward<T, float> params) {
  PersistentForward<Cell, T, kRowTiles, kBatchTiles, kCluster>(params, shared_memory()).run();
}

}  // namespace fused_rnn::cuda
