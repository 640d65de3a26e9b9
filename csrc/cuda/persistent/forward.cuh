// All steps of a recurrent layer in one kernel.

#pragma once

#include "cuda/persistent/walk.cuh"

namespace fused_rnn::cuda {

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster, int kChunksInRegisters>
class PersistentForward : PersistentWalk<PersistentForwardParams<T, float>, Cell, T, 1, kRowTiles, kBatchTiles,
                                         kCluster, kChunksInRegisters> {
  using Walk = PersistentWalk<PersistentForwardParams<T, float>, Cell, T, 1, kRowTiles, kBatchTiles, kCluster,
                              kChunksInRegisters>;
  using Part = typename Walk::Part;
  using Math = ActivationOf<T>;
  using Walk::cell_, Walk::hidden_, Walk::layout_, Walk::offset_, Walk::p_, Walk::coordinates_, Walk::plan_,
      Walk::shared_, Walk::size_, Walk::unit_, Walk::weights_;

 public:
  FUSED_RNN_DEVICE PersistentForward(const PersistentForwardParams<T, float>& params, char* shared)
      : Walk(params, shared) {
    load_biases();
  }

  FUSED_RNN_DEVICE void run() {
    load_weights<T>(shared_, kRowTiles * kTileRows, layout_.chunks, 1, Rows{p_, coordinates_, plan_.units});
    this->each_state([&](int own, int64_t at) {
      hidden_[own] = widen(p_.h0[at]);
      if constexpr (Cell::kHasCell) cell_[own] = widen(p_.c0[at]);
    });
    if constexpr (kCluster) fill_exchange();
    block_barrier();
    weights_.hold(shared_, layout_.chunks, coordinates_);
    Part part = this->part_at(0, 0);
    Needed needed;
    request(needed, part);
    while (part.index < p_.steps.time) {
      const bool wraps = part.first + Walk::kSequences >= coordinates_.sequences;
      const int64_t index = part.index + wraps;
      const Part next =
          index < p_.steps.time ? this->part_at(index, wraps ? 0 : part.first + Walk::kSequences) : Part{index, 0, 0};
      step(part, next, needed);
      part = next;
    }
    block_barrier();
    this->each_state([&](int own, int64_t at) {
      p_.h_n[at] = narrow<T>(hidden_[own]);
      if constexpr (Cell::kHasCell) p_.c_n[at] = narrow<T>(cell_[own]);
    });
    if constexpr (kCluster) cluster_barrier();
  }

 private:
  // The block's rows of the weights: gate by gate, `stride` of each.
  struct Rows {
    const PersistentForwardParams<T, float>& p;
    const BlockCoordinates& coordinates;
    int stride;
    static FUSED_RNN_DEVICE Position split(int index, int /*rows*/, int vectors) {
      return {index / vectors, index % vectors};
    }
    FUSED_RNN_DEVICE uint4 operator()(int row, int /*segment*/, int k) const {
      const int gate = row / stride, unit = row % stride;
      if (gate >= Cell::kGates || unit >= coordinates.units || k >= p.hidden_size) return {0, 0, 0, 0};
      const int64_t of_weight = gate * p.hidden_size + coordinates.first_unit + unit;
      return *reinterpret_cast<const uint4*>(p.weight_hh[coordinates.direction] + of_weight * p.hidden_size + k);
    }
  };

  FUSED_RNN_DEVICE void load_biases() {
    const T* ih = p_.bias_ih[coordinates_.direction];
    const T* hh = p_.bias_hh[coordinates_.direction];
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const bool there = ih != nullptr && unit_ < coordinates_.units;
        const auto at = [&](const T* bias, int gate) {
          return there ? widen(bias[gate * size_ + coordinates_.first_unit + unit_ + u]) : 0.0f;
        };
        const bool split = Cell::kSplitBias && s >= 2;
        bias_[s][u] = split ? at(s == 2 ? ih : hh, 2) : at(ih, s) + at(hh, s);
      }
  }

  FUSED_RNN_DEVICE void fill_exchange() const {
    this->clear_exchange();
    block_barrier();
    for (int index = threadIdx.x; index < coordinates_.sequences * size_ / 2; index += kThreads) {
      const int sequence = index / (size_ / 2), unit = index % (size_ / 2) * 2;
      store_pair(reinterpret_cast<T*>(this->exchange(0, sequence, 0, unit)),
                 handed_on(load_pair(p_.h0 + this->state(sequence, unit))));
    }
    cluster_barrier();
  }

  // The input's part of the sums of the thread's units in one step.
  struct Needed {
    bool runs;
    Pair<T> input[Cell::kGates];
  };

  FUSED_RNN_DEVICE void request(Needed& needed, const Part& part) const {
    if (!this->has_cell(part.first)) return;
    needed.runs = this->runs(part.index, part.first + offset_);
    if (!needed.runs) return;
    const T* input = p_.gates + this->in_saved(part.row + offset_, 4);
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) needed.input[gate] = load_pair(input + gate * size_);
  }

  // Where the hidden values before a step of a sequence are.
  FUSED_RNN_DEVICE Source before(const Part& part, int64_t row, int sequence) const {
    if constexpr (kCluster) return {this->exchange(part.index, sequence), true};
    if (!this->runs(part.index, sequence)) return {nullptr, false};
    const bool waits = part.index > 0 && this->runs(part.index - 1, sequence);
    const T* at = waits
                      ? p_.output + ((row + sequence - part.first) * this->directions_ + coordinates_.direction) * size_
                      : p_.h0 + this->state(sequence, 0);
    return {reinterpret_cast<char*>(const_cast<T*>(at)), waits};
  }

  // Takes a step, and fetches for the next one.
  FUSED_RNN_DEVICE void step(const Part& part, const Part& next, Needed& needed) {
    const Needed now = needed;
    if (next.index < p_.steps.time) request(needed, next);
    const int64_t row = part.index > 0 ? this->row_of(part.index - 1, part.first) : 0;
    const float* partial =
        this->multiply(part.first, [&](int sequence) { return before(part, row, sequence); }, [](int) { return 0; });
    if (!this->has_cell(part.first)) return;
    const int own = this->own_state(part.first);
    Pair<T> hidden;
    if (now.runs)
      hidden = finish(now, part.row + offset_, partial, own);
    else if (p_.steps.padded())
      blank(part.row + offset_);
    if constexpr (kCluster)
      if (part.index + 1 < p_.steps.time) {
        const float kept[2] = {hidden_[own], hidden_[own + 1]};
        this->hand_on(this->exchange(part.index + 1, part.first + offset_, 0, coordinates_.first_unit + unit_),
                      handed_on(now.runs ? hidden : narrow_pair<T>(kept)));
      }
  }

  // Adds up the sums of the thread's units, steps them, and returns their hidden values.
  FUSED_RNN_DEVICE Pair<T> finish(const Needed& now, int64_t row, const float* partial, int own) const {
    float recurrent[Cell::kGates][2] = {}, sums[2][4], hidden[2];
    this->add_partial(recurrent, partial);
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
      for (int s = 0; s < 4; ++s) sums[u][s] = bias_[s][u];
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      float input[2];
      widen_pair<T>(now.input[gate], input);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        sums[u][gate] += input[u];
        sums[u][Cell::saved_of(gate)] += recurrent[gate][u];
      }
    }
    float cell[2] = {};
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if constexpr (Cell::kHasCell) cell[u] = cell_[own + u];
      hidden[u] = Cell::template forward<Math>(sums[u], hidden_[own + u], cell[u]);
    }
    const Pair<T> words = narrow_pair<T>(hidden);
    store_fresh(p_.output + this->in_output(row), handed_on(words));
    // Not rounded, as what is handed on: the GRU adds to it step by step, and the roundings would add up.
    store_states(hidden_ + own, hidden);
    if constexpr (Cell::kHasCell) store_states(cell_ + own, cell);
    if (!p_.save_for_backward) return words;
    T* kept = p_.gates + this->in_saved(row, 4);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const float pair[2] = {sums[0][s], sums[1][s]};
      store_pair(kept + s * size_, narrow_pair<T>(pair));
    }
    if constexpr (Cell::kHasCell) store_states(p_.cells + this->in_saved(row, 1), cell);
    return words;
  }

  static FUSED_RNN_DEVICE void store_states(float* to, const float (&values)[2]) {
    *reinterpret_cast<float2*>(to) = {values[0], values[1]};
  }

  // Past the end of a sequence there are zeros.
  FUSED_RNN_DEVICE void blank(int64_t row) const {
    const float zeros[2] = {};
    store_fresh(p_.output + this->in_output(row), narrow_pair<T>(zeros));
    if constexpr (Cell::kHasCell)
      if (p_.save_for_backward) store_states(p_.cells + this->in_saved(row, 1), zeros);
  }

  float bias_[4][2];  // of each of the cell's four sums, of the thread's units
};

template <typename Cell, typename T, int kRowTiles, int kBatchTiles, bool kCluster, int kChunksInRegisters>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kThreads)
    persistent_forward(const FUSED_RNN_PARAM PersistentForwardParams<T, float> params) {
  if constexpr (!kCluster || kHasClusters)
    PersistentForward<Cell, T, kRowTiles, kBatchTiles, kCluster, kChunksInRegisters>(params, shared_memory()).run();
  else
    trap("there is no code for clusters");
}

}  // namespace fused_rnn::cuda
