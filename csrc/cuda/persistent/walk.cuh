// What the forward and the backward kernel share: the walk of a block through all steps of its sequences. See plan.h
// for how blocks share out a layer, and handover.cuh for how a step gets what other blocks made of the step before.
//
// The block works on kSequences sequences at a time. In each step every warp multiplies its share of the values that
// were handed over and stores partial sums in shared memory. Then every thread adds them up for its two units of one
// sequence, applies the cell, and publishes the results. What the cell needs besides is loaded one step ahead, so that
// the loads are done when the products are.

#pragma once

#include <type_traits>

#include "cuda/persistent/handover.cuh"
#include "cuda/persistent/product.cuh"
#include "cuda/persistent/traits.cuh"
#include "cuda/persistent/warpgroup_product.cuh"

namespace fused_rnn::cuda {

// The block's shared memory, aligned as the weights need it.
template <typename Traits>
FUSED_RNN_DEVICE char* block_memory() {
  if constexpr (Traits::kSplit > 0)
    return aligned_for_boxes(shared_memory());
  else
    return shared_memory();
}

template <typename Traits>
class PersistentWalk {
 protected:
  using T = typename Traits::T;
  using Params = typename Traits::Params;
  static constexpr int kRowTiles = Traits::kRowTiles, kLaneSequences = Traits::kLaneSequences;
  static constexpr int kSequences = Traits::kSequences, kPairs = Traits::kPairs;
  static constexpr bool kWarpgroup = Traits::kSplit > 0;
  static_assert(!kWarpgroup || Traits::kBatchTiles * kTileBatch == kWarpgroupWarps * kTileRows);

  FUSED_RNN_DEVICE PersistentWalk(const Params& params, char* shared)
      : p_(params),
        plan_(params.plan),
        size_(static_cast<int>(params.hidden_size)),
        directions_(static_cast<int>(params.directions)),
        coordinates_(params.plan, size_, static_cast<int>(params.steps.batch)),
        layout_(params.plan, params.hidden_size, sizeof(T), Traits::kSegments),
        handover_(params, layout_, shared),
        ragged_(params.steps.lengths != nullptr || params.steps.batch_sizes != nullptr),
        shared_(shared),
        hidden_(reinterpret_cast<float*>(shared + layout_.states)),
        cell_(hidden_ + plan_.sequences * plan_.units) {
    const int pairs = plan_.units / kUnitsPerThread;
    unit_ = threadIdx.x % pairs * kUnitsPerThread;
    offset_ = threadIdx.x / pairs;
    if (offset_ >= kSequences / kPairs || unit_ >= coordinates_.units) offset_ = kNone;
  }

  // What the block works on between two barriers: one step of kSequences neighbouring sequences of its group. Steps are
  // counted in the order of the direction.
  struct WorkTile {
    int64_t step, row;  // row: of the first sequence in arrays of [rows, ...]
    int first;          // the first sequence, counted from the first one of the group
  };

  FUSED_RNN_DEVICE int64_t time_of(int64_t step) const {
    return coordinates_.direction == 0 ? step : p_.steps.time - 1 - step;
  }
  FUSED_RNN_DEVICE int64_t row_of(int64_t step, int sequence) const {
    return p_.steps.row(time_of(step), coordinates_.first_sequence + sequence);
  }
  // Whether a sequence of the group has a step.
  FUSED_RNN_DEVICE bool runs(int64_t step, int sequence) const {
    return !ragged_ || p_.steps.runs(time_of(step), coordinates_.first_sequence + sequence);
  }
  FUSED_RNN_DEVICE WorkTile tile_at(int64_t step, int first) const { return {step, row_of(step, first), first}; }

  // Where a state of this direction is in [directions, batch, hidden_size].
  FUSED_RNN_DEVICE int64_t state(int sequence, int unit) const {
    return (coordinates_.direction * p_.steps.batch + coordinates_.first_sequence + sequence) * size_ + unit;
  }

  // Calls body(index among the block's states, index in [directions, batch, hidden_size]) for all states of the block,
  // which its threads share out.
  template <typename Body>
  FUSED_RNN_DEVICE void each_state(const Body& body) const {
    for (int index = threadIdx.x; index < coordinates_.sequences * plan_.units; index += kThreads) {
      const int unit = index % plan_.units;
      if (unit < coordinates_.units) body(index, state(index / plan_.units, coordinates_.first_unit + unit));
    }
  }

  // Which sequence of a tile this thread finishes in its turn `pair`.
  FUSED_RNN_DEVICE int offset_of(int pair) const { return offset_ + pair * (kSequences / kPairs); }
  // Whether it has units to finish there, in a tile whose first sequence is `first`, and where their states are among
  // the block's.
  FUSED_RNN_DEVICE bool finishes(int first, int offset) const { return first + offset < coordinates_.sequences; }
  FUSED_RNN_DEVICE int own_state(int first, int offset) const { return (first + offset) * plan_.units + unit_; }

  // Whether this thread's warp multiplies, and the n-th sequence of a tile whose values the thread loads for that.
  FUSED_RNN_DEVICE bool multiplies() const { return !kWarpgroup || warp_number() < kWarpgroupWarps; }
  FUSED_RNN_DEVICE int lane_sequence(int n) const {
    return (kWarpgroup ? coordinates_.warp * kTileRows : 0) + coordinates_.lane / 4 + n * kTileBatch;
  }
  // The block's rank in its cluster, where the blocks of a cluster share out the depth of the products.
  FUSED_RNN_DEVICE int part() const { return kWarpgroup ? coordinates_.rank % Traits::kParts : 0; }

  // Puts the block's weights into shared memory. rows_of(first unit, units) returns what load_weights reads.
  template <typename RowsOf>
  FUSED_RNN_DEVICE void load_block_weights(const RowsOf& rows_of) {
    if constexpr (kWarpgroup) {
#pragma unroll 1
      for (int owner = 0; owner < Traits::kSplit; ++owner) {
        const int first = (coordinates_.rank - part() + owner) * plan_.units;
        WarpgroupWeights<Traits>::load(shared_, layout_, part(), owner,
                                       rows_of(first, BlockCoordinates::units_from(first, plan_.units, size_)));
      }
      shared_written();
    } else {
      load_weights<T>(shared_, kRowTiles * kTileRows, layout_.chunks, Traits::kSegments,
                      rows_of(coordinates_.first_unit, coordinates_.units));
    }
  }
  // Waits until all of the block have done so, and takes into registers what belongs there.
  FUSED_RNN_DEVICE void weights_loaded() {
    if constexpr (kWarpgroup) {
      meet();
    } else {
      block_barrier();
      weights_.load(shared_, layout_.chunks, coordinates_);
    }
  }

  // Where this thread's units are in a row of [rows, directions * hidden_size], and of [directions, rows, parts *
  // hidden_size].
  FUSED_RNN_DEVICE int64_t in_output(int64_t row) const {
    return (row * directions_ + coordinates_.direction) * size_ + coordinates_.first_unit + unit_;
  }
  FUSED_RNN_DEVICE int64_t in_saved(int64_t row, int parts) const {
    return (coordinates_.direction * p_.steps.rows + row) * (parts * size_) + coordinates_.first_unit + unit_;
  }

  // Loads, as a byte that nothing waits for before it is used, whether the states of a sequence are replaced before a
  // step, which may also be the one after the last.
  FUSED_RNN_DEVICE uint8_t load_begins(int64_t step, int sequence) const {
    if (!p_.resets.begins || step >= p_.steps.time || !runs(step, sequence)) return 0;
    const auto* begins = reinterpret_cast<const uint8_t*>(p_.resets.begins);
    return begins[coordinates_.direction * p_.steps.rows + row_of(step, sequence)];
  }
  // Where the values of a sequence are that replace its state before a step.
  FUSED_RNN_DEVICE int64_t in_reset_states(int64_t step, int sequence) const {
    return p_.resets.state(coordinates_.direction, time_of(step), coordinates_.first_sequence + sequence) * size_;
  }
  // Loads those of this thread's units; `states` are null for zero.
  FUSED_RNN_DEVICE void load_replacing(const T* states, int64_t step, int sequence, float (&values)[2]) const {
    const int64_t at = in_reset_states(step, sequence) + coordinates_.first_unit + unit_;
    widen_pair<T>(states ? load_pair(states + at) : Pair<T>{}, values);
  }

  // Multiplies what was handed over for the sequences from `first` on, and returns the partial sums in shared memory,
  // [kParts][kSequences][partial_stride]. source_of(sequence, n) returns where the values of a sequence of the group
  // are, the n-th one of the lane.
  template <typename SourceOf>
  FUSED_RNN_DEVICE const float* multiply(int first, const SourceOf& source_of) {
    std::conditional_t<kWarpgroup, WarpgroupProduct<Traits>, Product<Traits>> product;
    if (multiplies()) {
      Source sources[kLaneSequences];
#pragma unroll
      for (int n = 0; n < kLaneSequences; ++n) {
        const int sequence = first + lane_sequence(n);
        sources[n] = sequence < coordinates_.sequences ? source_of(sequence, n) : Source{nullptr, false};
      }
      if constexpr (kWarpgroup)
        product.run(shared_, layout_, part(), handover_, sources, coordinates_.lane);
      else
        product.run(weights_, handover_, sources, coordinates_, p_.full_precision);
    }
    // With two buffers, which take turns, a warp that is ahead does not overwrite what others still read. With one, all
    // meet before they write.
    constexpr int kSize = kSequences * partial_stride(kRowTiles);
    float* partial = reinterpret_cast<float*>(shared_ + layout_.partial) + turn_ * Traits::kParts * kSize;
    if (plan_.partials == 2)
      turn_ ^= 1;
    else
      block_barrier();
    if constexpr (!kWarpgroup)
      product.store(partial + coordinates_.warp * kSize, coordinates_);
    else if (multiplies())
      product.store(partial + part() * kSize, coordinates_.warp, coordinates_.lane);
    meet();
    return partial;
  }

  // Adds to values[k] the sums of this thread's two units; rows of the weights for other k are plan.units apart.
  template <int kCount>
  FUSED_RNN_DEVICE void add_partial(float (&values)[kCount][2], const float* partial, int offset) const {
    const float* at = partial + offset * partial_stride(kRowTiles) + unit_;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float* row = at + k * plan_.units;
#pragma unroll
      for (int part = 0; part < Traits::kParts; ++part) {
        const float2 sums = *reinterpret_cast<const float2*>(row + part * kSequences * partial_stride(kRowTiles));
        values[k][0] += sums.x;
        values[k][1] += sums.y;
      }
    }
  }

  const Params& p_;
  const PersistentPlan& plan_;
  const int size_, directions_;
  const BlockCoordinates coordinates_;
  const SharedLayout layout_;
  const Handover<Traits> handover_;
  const bool ragged_;  // whether sequences have different numbers of steps
  char* const shared_;
  Weights<Traits> weights_;  // not those of a warpgroup, which all lie in shared memory
  float* const hidden_;      // [plan.sequences][plan.units] in shared memory: hidden values not rounded to T, or their
                             // gradients
  float* const cell_;        // [plan.sequences][plan.units] in shared memory: the second state, or its gradients
  // What this thread finishes: two units from unit_ on of the block, of the sequences offset_of(0) and so on of each
  // tile.
  int unit_, offset_;

 private:
  static constexpr int kNone = 1 << 30;  // past every sequence

  // Waits for all threads that store partial sums of one step in the same shared memory.
  static FUSED_RNN_DEVICE void meet() {
    if constexpr (Traits::kSplit > 1)
      cluster_barrier();
    else
      block_barrier();
  }

  int turn_ = 0;
};

}  // namespace fused_rnn::cuda
