// The product inside a step of the persistent kernels: the block's rows of the recurrent weights, which stay on the
// chip for the whole call, times what the blocks of the group made of the step before. One matrix instruction takes 16
// rows and 8 sequences.

#pragma once

#include "cuda/kit/dtype.cuh"
#include "cuda/persistent/handover.cuh"
#include "cuda/persistent/plan.h"
#include "cuda/persistent/traits.cuh"

namespace fused_rnn::cuda {

constexpr int kWarp = 32;

// Where a thread is in its block, and which units and sequences of the layer are the block's.
struct BlockCoordinates {
  int lane, warp;
  int rank;  // of the block in its group
  int direction;
  int first_unit, units;          // of this block
  int first_sequence, sequences;  // of this group

  FUSED_RNN_DEVICE BlockCoordinates(const PersistentPlan& plan, int hidden_size, int batch)
      : lane(threadIdx.x % kWarp),
        warp(threadIdx.x / kWarp),
        rank(blockIdx.x % plan.blocks),
        direction(plan.first_direction + blockIdx.x / plan.blocks / plan.groups),
        first_unit(rank * plan.units),
        units(units_from(first_unit, plan.units, hidden_size)),
        first_sequence(blockIdx.x / plan.blocks % plan.groups * plan.sequences),
        sequences(at_most(batch - first_sequence, plan.sequences)) {}

  // The units of a block whose first one this is: none, if it is past the last.
  static FUSED_RNN_DEVICE int units_from(int first, int units, int hidden_size) {
    return first < hidden_size ? at_most(hidden_size - first, units) : 0;
  }

 private:
  static FUSED_RNN_DEVICE int at_most(int value, int limit) { return value < limit ? value : limit; }
};

// Puts 16 bytes of a row of the weights among the tiles: the row's word w of a chunk goes to instruction w / 2.
FUSED_RNN_DEVICE void store_weights(char* shared, int chunks, int row, int chunk, int vector, const uint4& value) {
  auto* words = reinterpret_cast<uint32_t*>(shared);
  const int lane = row % 8 * 4 + vector, half = row % kTileRows / 8;
  const int tile = (row / kTileRows * chunks + chunk) * 2;
  const uint32_t word[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) words[((tile + w / 2) * kWarp + lane) * 4 + half + w % 2 * 2] = word[w];
}

// Where 16 bytes of a row of the weights are, among the rows and among the vectors of a row.
struct Position {
  int row, vector;
};

// Fills the tiles. At::split says in which order they are fetched; at(row, segment, k) returns 16 bytes of values from
// k on, zeros past the block's rows.
template <typename T, typename At>
FUSED_RNN_DEVICE void load_weights(char* shared, int rows, int chunks, int segments, const At& at) {
#pragma unroll 4
  for (int index = threadIdx.x; index < rows * segments * chunks * 4; index += kThreads) {
    const auto [row, vector] = At::split(index, rows, segments * chunks * 4);
    const int chunk = vector / 4;
    const int k = (chunk % chunks * 4 + vector % 4) * MmaTraits<T>::kPerVector;
    store_weights(shared, segments * chunks, row, chunk, vector % 4, at(row, chunk / chunks, k));
  }
}

// The weights of a warp's chunks: in registers, which load() fills once for the whole call, or in shared memory.
template <typename Traits>
struct Weights {
  static constexpr int kSegments = Traits::kSegments, kRowTiles = Traits::kRowTiles;
  static constexpr int kInRegisters = Traits::kChunksInRegisters;  // chunks of each segment

  const uint4* shared;  // of this lane: [kRowTiles][kSegments * chunks][2 instructions][kWarp]
  int chunks;           // of a segment
  uint4 in_registers[kInRegisters > 0 ? kSegments : 1][kInRegisters > 0 ? kInRegisters : 1][2][kRowTiles];

  FUSED_RNN_DEVICE void load(const char* memory, int chunks_of_segment, const BlockCoordinates& coordinates) {
    shared = reinterpret_cast<const uint4*>(memory) + coordinates.lane;
    chunks = chunks_of_segment;
    if constexpr (kInRegisters > 0)
#pragma unroll
      for (int s = 0; s < kSegments; ++s)
#pragma unroll
        for (int j = 0; j < kInRegisters; ++j)
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m) {
              const int chunk = coordinates.warp + j * kWarps;
              in_registers[s][j][half][m] = chunk < chunks ? from_shared(s, chunk, half, m) : uint4{0, 0, 0, 0};
            }
  }
  // Returns the weights of one matrix instruction; j counts the chunks from `first` on.
  FUSED_RNN_DEVICE uint4 tile(int s, int first, int j, int half, int m) const {
    return kInRegisters > 0 ? in_registers[kInRegisters > 0 ? s : 0][kInRegisters > 0 ? j : 0][half][m]
                            : from_shared(s, first + j * kWarps, half, m);
  }

 private:
  FUSED_RNN_DEVICE uint4 from_shared(int s, int chunk, int half, int m) const {
    return shared[((m * kSegments + s) * chunks + chunk) * 2 * kWarp + half * kWarp];
  }
};

template <typename Traits>
class Product {
  using T = typename Traits::T;
  using Received = typename Handover<Traits>::Received;
  static constexpr int kSegments = Traits::kSegments, kChunks = Traits::kChunksInFlight;
  static constexpr int kRowTiles = Traits::kRowTiles, kBatchTiles = Traits::kBatchTiles;
  // With few tiles there are sums of their own for every other instruction, where else each would wait for the one
  // before.
  static constexpr int kChains = kRowTiles * kBatchTiles >= 4 ? 1 : 4 / (kRowTiles * kBatchTiles);

 public:
  // Multiplies the warp's chunks of what was handed over for one sequence of each batch tile.
  FUSED_RNN_DEVICE void run(const Weights<Traits>& weights, const Handover<Traits>& handover,
                            const Source (&sources)[kBatchTiles], const BlockCoordinates& coordinates,
                            bool full_precision) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) clear(sum_[i]);
    if constexpr (Traits::kChunksInRegisters > 0)
      multiply(weights, handover, sources, coordinates, coordinates.warp, full_precision);
    else
      for (int first = coordinates.warp; first < weights.chunks; first += kChunks * kWarps)
        multiply(weights, handover, sources, coordinates, first, full_precision);
#pragma unroll
    for (int i = 1; i < kChains; ++i)
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum_[0][m][n][e] += sum_[i][m][n][e];
  }

  // Stores the sums into shared memory: [kBatchTiles * 8 sequences][partial_stride].
  FUSED_RNN_DEVICE void store(float* partial, const BlockCoordinates& coordinates) const {
    float* at = partial + coordinates.lane % 4 * 2 * partial_stride(kRowTiles) + coordinates.lane / 4;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          at[(n * kTileBatch + e % 2) * partial_stride(kRowTiles) + m * kTileRows + e / 2 * 8] = sum_[0][m][n][e];
  }

 private:
  // Multiplies the chunks from `first` on whose loads are issued together.
  FUSED_RNN_DEVICE void multiply(const Weights<Traits>& weights, const Handover<Traits>& handover,
                                 const Source (&sources)[kBatchTiles], const BlockCoordinates& coordinates, int first,
                                 bool full_precision) {
    Received b;
    handover.request(b, sources, 0, first, coordinates.lane);
    handover.await(b, sources);
#pragma unroll
    for (int s = 0; s < kSegments; ++s)
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
        if (Traits::kChunksInRegisters > 0 || first + j * kWarps < weights.chunks)
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m) {
              const uint4 a = weights.tile(s, first, j, half, m);
#pragma unroll
              for (int n = 0; n < kBatchTiles; ++n) {
                const uint4& v = b.value[s][j][n];
                MmaTraits<T>::multiply(sum_[((s * kChunks + j) * 2 + half) % kChains][m][n], a, half ? v.z : v.x,
                                       half ? v.w : v.y, full_precision);
              }
            }
  }

  static FUSED_RNN_DEVICE void clear(float (&sums)[kRowTiles][kBatchTiles][4]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][n][e] = 0;
  }

  float sum_[kChains][kRowTiles][kBatchTiles][4];
};

}  // namespace fused_rnn::cuda
