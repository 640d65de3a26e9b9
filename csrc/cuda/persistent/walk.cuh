// What the forward and the backward walk of the persistent kernels share; see persistent_plan.h for who does what.
//
// A step, for 8 * kBatchTiles sequences at a time: every warp multiplies its share of what was handed on and leaves the
// partial sums in shared memory; then every thread adds them up for its two units of one sequence, applies the cell and
// hands the results on. What the cell needs besides is fetched one step ahead.

#pragma once

#include "cuda/kit/activation.cuh"
#include "cuda/persistent/product.cuh"
#include "params/persistent.h"

namespace fused_rnn::cuda {

template <typename Params, typename Cell, typename T, int kSegments, int kRowTiles, int kBatchTiles, bool kCluster,
          int kChunksInRegisters>
class PersistentWalk {
 protected:
  static constexpr int kSequences = kTileBatch * kBatchTiles;  // that a block works on at a time

  FUSED_RNN_DEVICE PersistentWalk(const Params& params, char* shared)
      : p_(params),
        plan_(params.plan),
        size_(static_cast<int>(params.hidden_size)),
        directions_(static_cast<int>(params.directions)),
        coordinates_(params.plan, size_, static_cast<int>(params.steps.batch)),
        layout_(params.plan, params.hidden_size, sizeof(T), kSegments),
        ragged_(params.steps.lengths != nullptr || params.steps.batch_sizes != nullptr),
        shared_(shared),
        hidden_(reinterpret_cast<float*>(shared + layout_.states)),
        cell_(hidden_ + plan_.sequences * plan_.units) {
    const int pairs = plan_.units / kUnitsPerThread;
    unit_ = threadIdx.x % pairs * kUnitsPerThread;
    offset_ = threadIdx.x / pairs;
    if (offset_ >= kSequences || unit_ >= coordinates_.units) offset_ = kNone;
  }

  // A step, the sequences from `first` on that the block works on at a time, and the row of the first of them.
  struct Part {
    int64_t index, row;
    int first;
  };

  FUSED_RNN_DEVICE int64_t time_of(int64_t index) const {
    return coordinates_.direction == 0 ? index : p_.steps.time - 1 - index;
  }
  FUSED_RNN_DEVICE int64_t row_of(int64_t index, int first) const {
    return p_.steps.row(time_of(index), coordinates_.first_sequence + first);
  }
  // Whether a sequence of the group has the step `index`.
  FUSED_RNN_DEVICE bool runs(int64_t index, int sequence) const {
    return !ragged_ || p_.steps.runs(time_of(index), coordinates_.first_sequence + sequence);
  }
  FUSED_RNN_DEVICE Part part_at(int64_t index, int first) const { return {index, row_of(index, first), first}; }

  // Where a state of this direction lies.
  FUSED_RNN_DEVICE int64_t state(int sequence, int unit) const {
    return (coordinates_.direction * p_.steps.batch + coordinates_.first_sequence + sequence) * size_ + unit;
  }

  // Calls body(index among the block's states, index in the layer's) for this thread's share of them.
  template <typename Body>
  FUSED_RNN_DEVICE void each_state(const Body& body) const {
    for (int index = threadIdx.x; index < coordinates_.sequences * plan_.units; index += kThreads) {
      const int unit = index % plan_.units;
      if (unit < coordinates_.units) body(index, state(index / plan_.units, coordinates_.first_unit + unit));
    }
  }

  // Where one sequence's values start in this block's exchange buffer, and where one of them lies.
  FUSED_RNN_DEVICE char* exchange(int64_t index, int sequence) const {
    return shared_ + layout_.exchange + (index & 1) * layout_.exchange_size + sequence * layout_.exchange_stride;
  }
  FUSED_RNN_DEVICE char* exchange(int64_t index, int sequence, int segment, int unit) const {
    return exchange(index, sequence) + segment * layout_.chunks * kChunkBytes + unit * int(sizeof(T));
  }
  // Empties both buffers.
  FUSED_RNN_DEVICE void clear_exchange() const {
    auto* words = reinterpret_cast<uint32_t*>(shared_ + layout_.exchange);
    for (int64_t index = threadIdx.x; index < 2 * layout_.exchange_size / 4; index += kThreads) words[index] = kMissing;
  }
  // Writes two neighbouring values into the exchange buffers of all blocks of the group.
  FUSED_RNN_DEVICE void hand_on(char* mine, Pair<T> words) const {
#pragma unroll 4
    for (int rank = 0; rank < plan_.blocks; ++rank) store_shared_of(mine, rank, words);
  }

  // Whether the thread has units to finish among the sequences from `first` on, and where their states lie.
  FUSED_RNN_DEVICE bool has_cell(int first) const { return first + offset_ < coordinates_.sequences; }
  FUSED_RNN_DEVICE int own_state(int first) const { return (first + offset_) * plan_.units + unit_; }

  // Where the thread's values lie in [rows, directions * hidden_size], and in [directions, rows, kinds * hidden_size],
  // for a row of the layer.
  FUSED_RNN_DEVICE int64_t in_output(int64_t row) const {
    return (row * directions_ + coordinates_.direction) * size_ + coordinates_.first_unit + unit_;
  }
  FUSED_RNN_DEVICE int64_t in_saved(int64_t row, int kinds) const {
    return (coordinates_.direction * p_.steps.rows + row) * (kinds * size_) + coordinates_.first_unit + unit_;
  }

  // Multiplies what was handed on for the sequences from `first` on, and returns the partial sums, [kWarps][kSequences]
  // [partial_stride]. source_of(sequence) returns where the values of a sequence of the group are; offset_of(segment)
  // where in it a segment starts, in values.
  template <typename SourceOf, typename OffsetOf>
  FUSED_RNN_DEVICE const float* multiply(int first, const SourceOf& source_of, const OffsetOf& offset_of) {
    Product<T, kSegments, kRowTiles, kBatchTiles, kCluster, kChunksInRegisters> product;
    product.bytes = size_ * int(sizeof(T));
#pragma unroll
    for (int s = 0; s < kSegments; ++s)
      product.offsets[s] = kCluster ? s * layout_.chunks * kChunkBytes : offset_of(s) * int(sizeof(T));
    Source sources[kBatchTiles];
#pragma unroll
    for (int n = 0; n < kBatchTiles; ++n) {
      const int sequence = first + coordinates_.lane / 4 + n * kTileBatch;
      sources[n] = sequence < coordinates_.sequences ? source_of(sequence) : Source{nullptr, false};
    }
    product.run(weights_, sources, coordinates_, p_.allow_tf32);
    // Two buffers in turn: a warp that is ahead does not write over what others still read. With one, all meet before.
    constexpr int kSize = kSequences * partial_stride(kRowTiles);
    float* partial = reinterpret_cast<float*>(shared_ + layout_.partial) + turn_ * kWarps * kSize;
    if (plan_.partials == 2)
      turn_ ^= 1;
    else
      block_barrier();
    product.leave(partial + coordinates_.warp * kSize, coordinates_);
    block_barrier();
    return partial;
  }

  // Adds to values[k] the sums of the thread's two units; rows of the weights for other k lie plan.units apart.
  template <int kCount>
  FUSED_RNN_DEVICE void add_partial(float (&values)[kCount][2], const float* partial) const {
    const float* at = partial + offset_ * partial_stride(kRowTiles) + unit_;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float* row = at + k * plan_.units;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        const float2 part = *reinterpret_cast<const float2*>(row + warp * kSequences * partial_stride(kRowTiles));
        values[k][0] += part.x;
        values[k][1] += part.y;
      }
    }
  }

  const Params& p_;
  const PersistentPlan& plan_;
  const int size_, directions_;
  const BlockCoordinates coordinates_;
  const SharedLayout layout_;
  const bool ragged_;  // whether sequences end at different steps
  char* const shared_;
  Weights<kSegments, kRowTiles, kChunksInRegisters> weights_;
  float* const hidden_;  // [plan.sequences][plan.units]: hidden values, not rounded to T, or their gradients
  float* const cell_;    // [plan.sequences][plan.units]: cell values, or their gradients
  // What this thread finishes: two units of the block, of the sequence that comes so many after the first worked on.
  int unit_, offset_;

 private:
  static constexpr int kNone = 1 << 30;  // past every sequence

  int turn_ = 0;
};

}  // namespace fused_rnn::cuda
