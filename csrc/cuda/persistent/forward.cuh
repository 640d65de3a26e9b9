// All steps of a recurrent layer in one kernel.

#pragma once

#include <utility>

#include "cuda/persistent/walk.cuh"

namespace fused_rnn::cuda {

template <typename Traits>
class PersistentForward : PersistentWalk<Traits> {
  using Walk = PersistentWalk<Traits>;
  using Cell = typename Traits::Cell;
  using T = typename Traits::T;
  using Params = typename Traits::Params;
  using WorkTile = typename Walk::WorkTile;
  using Walk::cell_, Walk::hidden_, Walk::p_, Walk::coordinates_, Walk::plan_, Walk::size_, Walk::unit_,
      Walk::handover_;

 public:
  FUSED_RNN_DEVICE PersistentForward(const Params& params, char* shared) : Walk(params, shared) { load_biases(); }

  FUSED_RNN_DEVICE void run() {
    this->load_block_weights(
        [&](int first_unit, int units) { return Rows{p_, coordinates_.direction, first_unit, units, plan_.units}; });
    this->each_state([&](int own, int64_t at) {
      hidden_[own] = widen(p_.h0[at]);
      if constexpr (Traits::kHasCellState) cell_[own] = widen(p_.c0[at]);
    });
    handover_.prepare(coordinates_.sequences, [&](int sequence, int unit) {
      if (!this->load_begins(0, sequence)) return load_pair(p_.h0 + this->state(sequence, unit));
      return p_.reset_h ? load_pair(p_.reset_h + this->in_reset_states(0, sequence) + unit) : Pair<T>{};
    });
    this->weights_loaded();
    WorkTile tile = this->tile_at(0, 0);
    Prefetched prefetched;
    prefetch(prefetched, tile);
    while (tile.step < p_.steps.time) {
      const bool wraps = tile.first + Walk::kSequences >= coordinates_.sequences;
      const int64_t index = tile.step + wraps;
      const WorkTile next = index < p_.steps.time ? this->tile_at(index, wraps ? 0 : tile.first + Walk::kSequences)
                                                  : WorkTile{index, 0, 0};
      step(tile, next, prefetched);
      tile = next;
    }
    block_barrier();
    this->each_state([&](int own, int64_t at) {
      p_.h_n[at] = narrow<T>(hidden_[own]);
      if constexpr (Traits::kHasCellState) p_.c_n[at] = narrow<T>(cell_[own]);
    });
    handover_.finish();
  }

 private:
  // A block's rows of the weights for load_weights: gate by gate, `stride` rows of each.
  struct Rows {
    const Params& p;
    int direction, first_unit, units, stride;
    static FUSED_RNN_DEVICE Position split(int index, int /*rows*/, int vectors) {
      return {index / vectors, index % vectors};
    }
    FUSED_RNN_DEVICE uint4 operator()(int row, int /*segment*/, int k) const {
      const int gate = row / stride, unit = row % stride;
      if (gate >= Cell::kGates || unit >= units || k >= p.hidden_size) return {0, 0, 0, 0};
      const int64_t of_weight = gate * p.hidden_size + first_unit + unit;
      return *reinterpret_cast<const uint4*>(p.weight_hh[direction] + of_weight * p.hidden_size + k);
    }
  };

  // Returns the gate whose recurrent part goes to a sum, or -1.
  static constexpr int recurrent_gate(int sum) {
    for (int gate = 0; gate < Cell::kGates; ++gate)
      if (Cell::hidden_sum(gate) == sum) return gate;
    return -1;
  }

  // bias_ih of a gate belongs to the sum of the same number, bias_hh to that of the gate's recurrent part.
  FUSED_RNN_DEVICE void load_biases() {
    const T* ih = p_.bias_ih[coordinates_.direction];
    const T* hh = p_.bias_hh[coordinates_.direction];
#pragma unroll
    for (int s = 0; s < Cell::kSums; ++s)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const bool there = ih != nullptr && unit_ < coordinates_.units;
        const auto at = [&](const T* bias, int gate) {
          return there ? widen(bias[gate * size_ + coordinates_.first_unit + unit_ + u]) : 0.0f;
        };
        const int gate = recurrent_gate(s);
        bias_[s][u] = s >= Cell::kGates ? at(hh, gate) : gate < 0 ? at(ih, s) : at(ih, s) + at(hh, gate);
      }
  }

  // For one step: the input's part of the sums of this thread's units of one sequence, and whether its states are
  // replaced before the step, or before the next one.
  struct PrefetchedPair {
    bool runs;
    Pair<T> input[Cell::kGates];
    uint8_t begins, next_begins;
  };
  // The same for all pairs of units that the thread finishes, and whether the states of the sequences that its lane
  // multiplies are replaced.
  struct Prefetched {
    PrefetchedPair pairs[Walk::kPairs];
    uint8_t sources_begin[Traits::kLaneSequences];
  };

  FUSED_RNN_DEVICE void prefetch(Prefetched& prefetched, const WorkTile& tile) const {
    if (!Traits::kCluster && this->multiplies()) {
#pragma unroll
      for (int n = 0; n < Traits::kLaneSequences; ++n) {
        const int sequence = tile.first + this->lane_sequence(n);
        prefetched.sources_begin[n] =
            sequence < coordinates_.sequences ? this->load_begins(tile.step, sequence) : uint8_t{0};
      }
    }
#pragma unroll
    for (int pair = 0; pair < Walk::kPairs; ++pair) prefetch(prefetched.pairs[pair], tile, this->offset_of(pair));
  }

  FUSED_RNN_DEVICE void prefetch(PrefetchedPair& prefetched, const WorkTile& tile, int offset) const {
    if (!this->finishes(tile.first, offset)) return;
    prefetched.begins = this->load_begins(tile.step, tile.first + offset);
    if constexpr (Traits::kCluster) prefetched.next_begins = this->load_begins(tile.step + 1, tile.first + offset);
    prefetched.runs = this->runs(tile.step, tile.first + offset);
    if (!prefetched.runs) return;
    const T* input = p_.gates + this->in_saved(tile.row + offset, Cell::kSums);
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) prefetched.input[gate] = load_pair(input + gate * size_);
  }

  // Returns where the hidden values of a sequence before a step are. `row` is that of the tile in the step before; in a
  // cluster the values have been replaced by who handed them over.
  FUSED_RNN_DEVICE Source before(const WorkTile& tile, int64_t row, int sequence, bool begins) const {
    return handover_.source(tile.step, sequence, [&]() -> Source {
      if (begins) {
        const T* replacing = p_.reset_h ? p_.reset_h + this->in_reset_states(tile.step, sequence) : nullptr;
        return {reinterpret_cast<char*>(const_cast<T*>(replacing)), false};
      }
      if (!this->runs(tile.step, sequence)) return {nullptr, false};
      const bool waits = tile.step > 0 && this->runs(tile.step - 1, sequence);
      const T* at =
          waits ? p_.output + ((row + sequence - tile.first) * this->directions_ + coordinates_.direction) * size_
                : p_.h0 + this->state(sequence, 0);
      return {reinterpret_cast<char*>(const_cast<T*>(at)), waits};
    });
  }

  // Computes a tile, and prefetches for the next one.
  FUSED_RNN_DEVICE void step(const WorkTile& tile, const WorkTile& next, Prefetched& prefetched) {
    const Prefetched now = prefetched;
    if (next.step < p_.steps.time) prefetch(prefetched, next);
    const int64_t row = tile.step > 0 ? this->row_of(tile.step - 1, tile.first) : 0;
    const float* partial = this->multiply(tile.first, [&](int sequence, int n) {
      return before(tile, row, sequence, !Traits::kCluster && now.sources_begin[n]);
    });
#pragma unroll
    for (int pair = 0; pair < Walk::kPairs; ++pair) step(tile, now.pairs[pair], partial, this->offset_of(pair));
  }

  // The same after the product, for this thread's units of one sequence.
  FUSED_RNN_DEVICE void step(const WorkTile& tile, const PrefetchedPair& now, const float* partial, int offset) const {
    if (!this->finishes(tile.first, offset)) return;
    const int own = this->own_state(tile.first, offset);
    if (now.begins) replace_states(tile, own, offset);
    Pair<T> hidden = {};
    if (now.runs)
      hidden = finish(now, tile.row + offset, partial, own, offset);
    else if (p_.steps.padded())
      write_padding(tile.row + offset);
    if constexpr (Traits::kCluster)
      if (tile.step + 1 < p_.steps.time) {
        float unchanged[2] = {hidden_[own], hidden_[own + 1]};
        if (now.next_begins) this->load_replacing(p_.reset_h, tile.step + 1, tile.first + offset, unchanged);
        const bool changed = now.runs && !now.next_begins;
        handover_.publish_in_cluster(tile.step + 1, tile.first + offset, coordinates_.first_unit + unit_,
                                     {handover_.message(changed ? hidden : narrow_pair<T>(unchanged))});
      }
  }

  // Replaces the states of this thread's units before a step.
  FUSED_RNN_DEVICE void replace_states(const WorkTile& tile, int own, int offset) const {
    float values[2];
    this->load_replacing(p_.reset_h, tile.step, tile.first + offset, values);
    store_states(hidden_ + own, values);
    if constexpr (!Traits::kHasCellState) return;
    this->load_replacing(p_.reset_c, tile.step, tile.first + offset, values);
    store_states(cell_ + own, values);
  }

  // Adds up the sums of this thread's units, applies the cell to them, and returns their hidden values.
  FUSED_RNN_DEVICE Pair<T> finish(const PrefetchedPair& now, int64_t row, const float* partial, int own,
                                  int offset) const {
    float recurrent[Cell::kGates][2] = {}, sums[2][Cell::kSums], hidden[2], cell[2] = {};
    this->add_partial(recurrent, partial, offset);
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
      for (int s = 0; s < Cell::kSums; ++s) sums[u][s] = bias_[s][u];
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      float input[2];
      widen_pair<T>(now.input[gate], input);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        sums[u][gate] += input[u];
        sums[u][Cell::hidden_sum(gate)] += recurrent[gate][u];
      }
    }
    // Lists, not loops over s: the compiler then contracts the cell's products and sums as in the kernels that were
    // measured.
    float states[2][Cell::kStates];
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if constexpr (Cell::kReadsHidden) states[u][0] = hidden_[own + u];
      if constexpr (Traits::kHasCellState) states[u][1] = cell_[own + u];
      [&]<int... s>(std::integer_sequence<int, s...>) {
        float values[] = {sums[u][s]...};
        Cell::template forward<typename Traits::Math>(values, states[u]);
        ((sums[u][s] = values[s]), ...);
      }(std::make_integer_sequence<int, Cell::kSums>());
      hidden[u] = states[u][0];
      if constexpr (Traits::kHasCellState) cell[u] = states[u][1];
    }
    const Pair<T> words = narrow_pair<T>(hidden);
    handover_.publish(p_.output + this->in_output(row), handover_.message(words));
    // The states stay unrounded: the GRU adds to h at every step, and roundings would add up.
    store_states(hidden_ + own, hidden);
    if constexpr (Traits::kHasCellState) store_states(cell_ + own, cell);
    if (!p_.save_for_backward) return words;
    T* saved = p_.gates + this->in_saved(row, Cell::kSums);
#pragma unroll
    for (int s = 0; s < Cell::kSums; ++s) {
      const float pair[2] = {sums[0][s], sums[1][s]};
      store_pair(saved + s * size_, narrow_pair<T>(pair));
    }
    if constexpr (Traits::kHasCellState) store_pair(p_.cells + this->in_saved(row, 1), narrow_pair<T>(cell));
    return words;
  }

  static FUSED_RNN_DEVICE void store_states(float* to, const float (&values)[2]) {
    *reinterpret_cast<float2*>(to) = {values[0], values[1]};
  }

  // Writes zeros for a step that a sequence does not have.
  FUSED_RNN_DEVICE void write_padding(int64_t row) const {
    const float zeros[2] = {};
    handover_.publish(p_.output + this->in_output(row), handover_.message(narrow_pair<T>(zeros)));
    if constexpr (Traits::kHasCellState)
      if (p_.save_for_backward) store_pair(p_.cells + this->in_saved(row, 1), narrow_pair<T>(zeros));
  }

  float bias_[Cell::kSums][2];  // of each sum of this thread's two units
};

template <typename Traits>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kThreads)
    persistent_forward(const FUSED_RNN_PARAM typename Traits::Params params) {
  if constexpr (Traits::kSplit > 0 ? !kHasHopper : Traits::kCluster && !kHasClusters)
    trap("there is no code for this GPU");
  else
    PersistentForward<Traits>(params, block_memory<Traits>()).run();
}

}  // namespace fused_rnn::cuda
