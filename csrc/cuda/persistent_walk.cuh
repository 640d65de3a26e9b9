// What the forward and the backward walk of the persistent kernels share; see persistent_plan.h for who does what.
//
// A step, for 8 * kBatchTiles sequences at a time: every warp multiplies its share of the block's rows and of the sum and
// leaves the partial sums in shared memory; then every thread adds them up for its units and sequences, applies the cell
// and hands the results on. What the cell needs besides is fetched one step ahead.

#pragma once

#include "cuda/persistent_product.cuh"
#include "params/recurrent_cuda.h"

namespace fused_rnn::cuda {

// kSegments: how many times hidden_size values the blocks hand on for each sequence, and sum over.
template <typename Params, typename Cell, typename T, int kSegments, int kRowTiles, int kBatchTiles, bool kCluster>
class PersistentWalk {
 protected:
  static constexpr int kSequences = kTileBatch * kBatchTiles;  // that a team works on at a time

  FUSED_RNN_DEVICE PersistentWalk(const Params& params, char* shared)
      : p_(params),
        plan_(params.plan),
        size_(static_cast<int>(params.hidden_size)),
        directions_(static_cast<int>(params.directions)),
        place_(params.plan, size_, static_cast<int>(params.steps.batch)),
        layout_(params.plan, params.hidden_size, sizeof(T), kSegments),
        shared_(shared),
        own_(shared + layout_.teams + place_.team * layout_.team),
        hidden_(reinterpret_cast<float*>(own_ + layout_.states)),
        cell_(hidden_ + plan_.sequences * plan_.units) {
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i) {
      const int index = place_.thread + i * place_.threads;
      offset_[i] = index / plan_.units;
      unit_[i] = index % plan_.units;
      if (offset_[i] >= kSequences || unit_[i] >= place_.units) offset_[i] = kNone;
    }
  }

  // A step and the sequences, from `first` on, that the team works on at a time.
  struct Part {
    int64_t index;
    int first;
  };

  FUSED_RNN_DEVICE int64_t time_of(int64_t index) const {
    return place_.direction == 0 ? index : p_.steps.time - 1 - index;
  }

  // Where a state of this direction lies.
  FUSED_RNN_DEVICE int64_t state(int sequence, int unit) const {
    return (place_.direction * p_.steps.batch + place_.first_sequence + sequence) * size_ + unit;
  }

  // Calls body(index among the team's states, index in the layer's) for this thread's share of them.
  template <typename Body>
  FUSED_RNN_DEVICE void each_state(const Body& body) const {
    for (int index = place_.thread; index < place_.sequences * plan_.units; index += place_.threads) {
      const int unit = index % plan_.units;
      if (unit < place_.units) body(index, state(index / plan_.units, place_.first_unit + unit));
    }
  }

  // Where one sequence's values lie in this team's exchange buffer.
  FUSED_RNN_DEVICE T* exchange(int buffer, int sequence) const {
    return reinterpret_cast<T*>(own_ + layout_.exchange + buffer * layout_.exchange_size +
                                sequence * layout_.exchange_stride);
  }

  // Fills both exchange buffers: at(sequence, k) for the first one, and zeros.
  template <typename At>
  FUSED_RNN_DEVICE void fill_exchange(const At& at) const {
    const int values = layout_.chunks * kChunkBytes / int(sizeof(T));
    const int all = static_cast<int>(exchange_rows(plan_)) * values;
    for (int index = place_.thread; index < 2 * all; index += place_.threads) {
      const int sequence = index % all / values, k = index % values;
      const bool there = index < all && sequence < place_.sequences && k < size_;
      exchange(index / all, sequence)[k] = there ? at(sequence, k) : narrow<T>(0.0f);
    }
  }

  // Writes a value into the exchange buffers of all blocks of the group.
  FUSED_RNN_DEVICE void hand_on(T* mine, T value) const {
    if (plan_.blocks == 1) {
      *mine = value;
      return;
    }
#pragma unroll 4
    for (int rank = 0; rank < plan_.blocks; ++rank) *shared_of(mine, rank) = value;
  }

  // Meets the threads of the team.
  FUSED_RNN_DEVICE void meet_team() const { team_barrier(place_.team, place_.threads); }
  // Meets all who read and write this team's exchange buffers.
  FUSED_RNN_DEVICE void meet_group() const {
    if (plan_.blocks > 1)
      cluster_barrier();
    else
      meet_team();
  }

  // Whether the thread has an i-th unit and sequence to finish among those from `first` on.
  FUSED_RNN_DEVICE bool has_cell(int i, int first) const { return first + offset_[i] < place_.sequences; }
  FUSED_RNN_DEVICE int own_state(int i, int first) const { return (first + offset_[i]) * plan_.units + unit_[i]; }

  // Where the values of a cell lie in [rows, directions * hidden_size], and, kinds of them, in [directions, rows, kinds *
  // hidden_size]; `row` as CudaSteps has it.
  FUSED_RNN_DEVICE int64_t in_output(int64_t row, int i) const {
    return (row * directions_ + place_.direction) * size_ + place_.first_unit + unit_[i];
  }
  FUSED_RNN_DEVICE int64_t in_saved(int64_t row, int i, int kinds) const {
    return (place_.direction * p_.steps.rows + row) * (kinds * size_) + place_.first_unit + unit_[i];
  }

  // Multiplies what was handed on for the sequences from `first` on, and returns the partial sums, [depth_warps]
  // [kSequences][partial_stride]. source_of(own sequence, waits) returns the row in global memory where the values of a
  // sequence are, or null for zeros, and sets whether they may still be missing; for a cluster they are in `buffer`.
  template <typename SourceOf>
  FUSED_RNN_DEVICE const float* multiply(int first, int buffer, const SourceOf& source_of) {
    Product<T, kRowTiles, kBatchTiles> product;
    const int sequence = first + place_.lane / 4;
    if constexpr (kCluster) {
      const SharedSource source = {
          reinterpret_cast<const char*>(exchange(buffer, sequence)) + place_.lane % 4 * 16, layout_.exchange_stride};
      product.run(shared_, layout_.chunks, plan_, place_, source, p_.exact);
    } else {
      FreshSource<T, Cell, kSegments, kBatchTiles> source;
      source.hidden_size = size_;
      source.chunks_per_segment = layout_.chunks / kSegments;
      source.lane_offset = place_.lane % 4 * Number<T>::kPerVector;
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n) {
        const int own = sequence + n * kTileBatch;
        source.waits[n] = false;
        source.row[n] = own < place_.sequences ? source_of(own, source.waits[n]) : nullptr;
      }
      product.run(shared_, layout_.chunks, plan_, place_, source, p_.exact);
    }
    // Two buffers in turn: a warp that is ahead does not write over what others still read.
    const int size = kSequences * layout_.partial_stride;
    float* partial = reinterpret_cast<float*>(own_) + turn_ * plan_.depth_warps * size;
    turn_ ^= 1;
    product.leave(partial + place_.depth_warp * size, layout_.partial_stride, place_);
    meet_team();
    return partial;
  }

  // Adds to each of `count` values the sum of the partial sums of the i-th cell; their rows of the weights lie
  // plan.units apart.
  template <int kCount>
  FUSED_RNN_DEVICE void add_partial(float (&values)[kCount], const float* partial, int i) const {
    const float* at = partial + offset_[i] * layout_.partial_stride + unit_[i];
    const int size = kSequences * layout_.partial_stride;
    float parts[kMostDepthWarps][kCount];
#pragma unroll
    for (int warp = 0; warp < kMostDepthWarps; ++warp)
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        parts[warp][k] = warp < plan_.depth_warps ? at[warp * size + k * plan_.units] : 0.0f;
#pragma unroll
    for (int k = 0; k < kCount; ++k)
#pragma unroll
      for (int warp = 0; warp < kMostDepthWarps; ++warp) values[k] += parts[warp][k];
  }

  const Params& p_;
  const PersistentPlan& plan_;
  const int size_, directions_;
  const Place place_;
  const SharedLayout layout_;
  char* const shared_;
  char* const own_;      // this team's part of it: first the partial sums, [2][depth_warps][kSequences][partial_stride]
  float* const hidden_;  // [plan.sequences][plan.units]: hidden values, or their gradients
  float* const cell_;    // [plan.sequences][plan.units]: cell values, or their gradients
  // What this thread finishes: units of the block, times sequences counted from the first one worked on.
  int unit_[kCellsPerThread], offset_[kCellsPerThread];

 private:
  static constexpr int kNone = 1 << 30;  // past every sequence
  static constexpr int kMostDepthWarps = 8;

  int turn_ = 0;
};

}  // namespace fused_rnn::cuda
