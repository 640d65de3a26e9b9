// What the forward and the backward walk of the persistent kernels share; see persistent_plan.h for who does what.
//
// A step, for 8 * kBatchTiles sequences at a time: every warp multiplies its share of the block's rows and of the sum and
// leaves the partial sums in shared memory; then every thread adds them up for its units and sequences, applies the cell
// and hands the results on.

#pragma once

#include "cuda/persistent_product.cuh"
#include "params/recurrent_cuda.h"

namespace fused_rnn::cuda {

// kSegments: how many times hidden_size values the blocks hand on for each sequence, and sum over.
template <typename Params, typename Cell, typename T, int kSegments, int kRowTiles, int kBatchTiles, bool kCluster>
class PersistentWalk {
 protected:
  static constexpr int kSequences = kTileBatch * kBatchTiles;  // that a block works on at a time

  FUSED_RNN_DEVICE PersistentWalk(const Params& params, char* shared)
      : p_(params),
        plan_(params.plan),
        place_(params.plan, params.hidden_size, params.steps.batch),
        layout_(params.plan, params.hidden_size, sizeof(T), kSegments),
        shared_(shared),
        partial_(reinterpret_cast<float*>(shared + layout_.partial)),
        hidden_(reinterpret_cast<float*>(shared + layout_.states)),
        cell_(hidden_ + int64_t(plan_.sequences) * plan_.units) {}

  // Where a state of this direction lies.
  FUSED_RNN_DEVICE int64_t state(int64_t sequence, int64_t unit) const {
    return (place_.direction * p_.steps.batch + place_.first_sequence + sequence) * p_.hidden_size + unit;
  }

  // Calls body(index among the block's states, index in the layer's) for this thread's share of them.
  template <typename Body>
  FUSED_RNN_DEVICE void each_state(const Body& body) const {
    for (int64_t index = threadIdx.x; index < place_.sequences * plan_.units; index += blockDim.x) {
      const int64_t unit = index % plan_.units;
      if (unit < place_.units) body(index, state(index / plan_.units, place_.first_unit + unit));
    }
  }

  FUSED_RNN_DEVICE int64_t time_of(int64_t index) const {
    return place_.direction == 0 ? index : p_.steps.time - 1 - index;
  }

  // Where one sequence's values lie in this block's exchange buffer.
  FUSED_RNN_DEVICE T* exchange(int64_t buffer, int64_t sequence) const {
    return reinterpret_cast<T*>(shared_ + layout_.exchange + buffer * layout_.exchange_size +
                                sequence * layout_.exchange_stride);
  }

  // Fills both exchange buffers: at(sequence, k) for the first one, and zeros.
  template <typename At>
  FUSED_RNN_DEVICE void fill_exchange(const At& at) const {
    const int64_t values = layout_.chunks * kChunkBytes / sizeof(T);
    const int64_t all = round_up(plan_.sequences, kTileBatch) * values;
    for (int64_t index = threadIdx.x; index < 2 * all; index += blockDim.x) {
      const int64_t sequence = index % all / values, k = index % values;
      const bool there = index < all && sequence < place_.sequences && k < p_.hidden_size;
      exchange(index / all, sequence)[k] = there ? at(sequence, k) : narrow<T>(0.0f);
    }
  }

  // Writes a value into the exchange buffers of all blocks of the group.
  FUSED_RNN_DEVICE void hand_on(T* mine, T value) const {
    if (plan_.blocks == 1)
      *mine = value;
    else
      for (int rank = 0; rank < plan_.blocks; ++rank) *shared_of(mine, rank) = value;
  }

  // Meets all who read and write this block's shared memory.
  FUSED_RNN_DEVICE void meet() const {
    if (kCluster && plan_.blocks > 1)
      cluster_barrier();
    else
      block_barrier();
  }

  // What a thread finishes: units times sequences, the sequences from `first` on, in the step at t.
  struct Cells {
    int64_t unit[kCellsPerThread], sequence[kCellsPerThread], row[kCellsPerThread];
    bool there[kCellsPerThread], runs[kCellsPerThread];
  };
  FUSED_RNN_DEVICE void place_cells(Cells& cells, int64_t t, int64_t first) const {
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i) {
      const int index = threadIdx.x + i * blockDim.x, offset = index / plan_.units;
      cells.unit[i] = index % plan_.units;
      cells.sequence[i] = first + offset;
      cells.there[i] = offset < kSequences && cells.sequence[i] < place_.sequences && cells.unit[i] < place_.units;
      const int64_t sequence = place_.first_sequence + cells.sequence[i];
      cells.runs[i] = cells.there[i] && t >= 0 && p_.steps.runs(t, sequence);
      cells.row[i] = cells.runs[i] || (cells.there[i] && t >= 0) ? p_.steps.row(t, sequence) : 0;
    }
  }

  // Where the values of a cell lie in [rows, directions * hidden_size], and, kinds of them, in [directions, rows, kinds *
  // hidden_size].
  FUSED_RNN_DEVICE int64_t in_output(const Cells& cells, int i) const {
    return (cells.row[i] * p_.directions + place_.direction) * p_.hidden_size + place_.first_unit + cells.unit[i];
  }
  FUSED_RNN_DEVICE int64_t in_saved(const Cells& cells, int i, int kinds) const {
    return (place_.direction * p_.steps.rows + cells.row[i]) * kinds * p_.hidden_size + place_.first_unit +
           cells.unit[i];
  }

  // Multiplies what was handed on for the sequences from `first` on, and returns the partial sums, [depth_warps]
  // [kSequences][partial_stride]. source_of(own sequence, waits) returns the row in global memory where the values of a
  // sequence are, or null for zeros, and sets whether they may still be missing; for a cluster they are in `buffer`.
  template <typename SourceOf>
  FUSED_RNN_DEVICE const float* multiply(int64_t first, int64_t buffer, const SourceOf& source_of) {
    Product<T, kRowTiles, kBatchTiles> product;
    const int64_t sequence = first + place_.lane / 4;
    if constexpr (kCluster) {
      const SharedSource source = {
          reinterpret_cast<const char*>(exchange(buffer, sequence)) + place_.lane % 4 * 16, layout_.exchange_stride};
      product.run(shared_, layout_.chunks, plan_, place_, source, p_.exact);
    } else {
      FreshSource<T, Cell, kSegments, kBatchTiles> source;
      source.hidden_size = p_.hidden_size;
      source.chunks_per_segment = layout_.chunks / kSegments;
      source.lane_offset = place_.lane % 4 * Number<T>::kPerVector;
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n) {
        const int64_t own = sequence + n * kTileBatch;
        source.waits[n] = false;
        source.row[n] = own < place_.sequences ? source_of(own, source.waits[n]) : nullptr;
      }
      product.run(shared_, layout_.chunks, plan_, place_, source, p_.exact);
    }
    // Two buffers in turn: a warp that is ahead does not write over what others still read.
    const int64_t size = kSequences * layout_.partial_stride;
    float* partial = partial_ + turn_ * plan_.depth_warps * size;
    turn_ ^= 1;
    product.leave(partial + place_.depth_warp * size, layout_.partial_stride, place_);
    block_barrier();
    return partial;
  }

  // Adds up the partial sums of one row of the weights and one sequence.
  FUSED_RNN_DEVICE float sum_of(const float* partial, int64_t row, int64_t offset) const {
    float sum = 0;
    for (int warp = 0; warp < plan_.depth_warps; ++warp)
      sum += partial[(warp * kSequences + offset) * layout_.partial_stride + row];
    return sum;
  }

  const Params& p_;
  const PersistentPlan& plan_;
  const Place place_;
  const SharedLayout layout_;
  char* const shared_;
  float* const partial_;  // [2][depth_warps][kSequences][partial_stride]
  float* const hidden_;   // [plan.sequences][plan.units]: hidden values, or their gradients
  float* const cell_;     // [plan.sequences][plan.units]: cell values, or their gradients

 private:
  int turn_ = 0;
};

}  // namespace fused_rnn::cuda
