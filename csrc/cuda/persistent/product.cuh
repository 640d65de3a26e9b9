// The product inside a step of the persistent kernels: rows of the recurrent weights, which stay in shared memory,
// times what the blocks of the group made of the step before, 16 rows by 8 sequences for each matrix instruction.
//
// Blocks hand these values on without flags and barriers: where they are to come there is a NaN of all ones, which
// nobody hands on, and a reader reads again until it is gone. On a grid the values travel through the L2 cache, each to
// a coordinates of its own that is filled with ones beforehand. In a cluster every block writes them into the shared
// memory of all others, into two buffers in turn, and whoever has read a coordinates fills it with ones again: it is
// written anew only by those who have what this block made of it.

#pragma once

#include "cuda/kit/dtype.cuh"
#include "cuda/persistent/plan.h"

namespace fused_rnn::cuda {

constexpr int kWarp = 32;

// The part of a thread in its block and of the block in the layer.
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
        units(at_most(hidden_size - first_unit, plan.units)),
        first_sequence(blockIdx.x / plan.blocks % plan.groups * plan.sequences),
        sequences(at_most(batch - first_sequence, plan.sequences)) {}

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

// Where what was handed on for one sequence starts, in global memory or in this block's shared memory; null for zeros.
struct Source {
  char* at;
  bool waits;  // whether it may still be missing
};

// The weights of a warp's chunks: in registers for the whole call, kChunksInRegisters chunks of each segment, or for
// kChunksInRegisters == 0 in shared memory.
template <int kSegments, int kRowTiles, int kChunksInRegisters>
struct Weights {
  const uint4* shared;  // of this lane: [kRowTiles][kSegments * chunks][2 instructions][kWarp]
  int chunks;           // of a segment
  uint4 chunks_in_registers[kChunksInRegisters > 0 ? kSegments : 1][kChunksInRegisters > 0 ? kChunksInRegisters : 1][2]
                           [kRowTiles];

  FUSED_RNN_DEVICE void hold(const char* memory, int chunks_of_segment, const BlockCoordinates& coordinates) {
    shared = reinterpret_cast<const uint4*>(memory) + coordinates.lane;
    chunks = chunks_of_segment;
    if constexpr (kChunksInRegisters > 0)
#pragma unroll
      for (int s = 0; s < kSegments; ++s)
#pragma unroll
        for (int j = 0; j < kChunksInRegisters; ++j)
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m) {
              const int chunk = coordinates.warp + j * kWarps;
              chunks_in_registers[s][j][half][m] = chunk < chunks ? from_shared(s, chunk, half, m) : uint4{0, 0, 0, 0};
            }
  }
  FUSED_RNN_DEVICE uint4 from_shared(int s, int chunk, int half, int m) const {
    return shared[((m * kSegments + s) * chunks + chunk) * 2 * kWarp + half * kWarp];
  }
};

template <typename T, int kSegments, int kRowTiles, int kBatchTiles, bool kCluster, int kChunksInRegisters>
struct Product {
  // Chunks of each segment whose loads are under way together.
  static constexpr int kInFlight = kChunksInRegisters > 0 ? kChunksInRegisters
                                   : kSegments == 1       ? 4
                                                          : 16 / kSegments / kBatchTiles;
  // Sums of their own for every other instruction, where else each would wait for the one before.
  static constexpr int kChains = kRowTiles * kBatchTiles >= 4 ? 1 : 4 / (kRowTiles * kBatchTiles);

  float sum[kChains][kRowTiles][kBatchTiles][4];
  int bytes;               // of a segment
  int offsets[kSegments];  // of the segments in what was handed on for a sequence, in bytes

  FUSED_RNN_DEVICE void run(const Weights<kSegments, kRowTiles, kChunksInRegisters>& weights,
                            Source (&sources)[kBatchTiles], const BlockCoordinates& coordinates, bool allow_tf32) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) clear(sum[i]);
    if constexpr (kChunksInRegisters > 0)
      round(weights, sources, coordinates, coordinates.warp, allow_tf32);
    else
      for (int first = coordinates.warp; first < weights.chunks; first += kInFlight * kWarps)
        round(weights, sources, coordinates, first, allow_tf32);
#pragma unroll
    for (int i = 1; i < kChains; ++i)
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[0][m][n][e] += sum[i][m][n][e];
  }

  // Leaves the sums in shared memory: [kBatchTiles * 8 sequences][partial_stride].
  FUSED_RNN_DEVICE void leave(float* partial, const BlockCoordinates& coordinates) const {
    float* at = partial + coordinates.lane % 4 * 2 * partial_stride(kRowTiles) + coordinates.lane / 4;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          at[(n * kTileBatch + e % 2) * partial_stride(kRowTiles) + m * kTileRows + e / 2 * 8] = sum[0][m][n][e];
  }

 private:
  // What the lane reads of one round: 16 bytes of each chunk, and where they are; null for zeros.
  struct Round {
    uint4 value[kSegments][kInFlight][kBatchTiles];
    char* at[kBatchTiles];  // of the first chunk
    int there;              // chunks from the first on of which this lane's part lies within the segment
  };

  FUSED_RNN_DEVICE void round(const Weights<kSegments, kRowTiles, kChunksInRegisters>& weights,
                              const Source (&sources)[kBatchTiles], const BlockCoordinates& coordinates, int first,
                              bool allow_tf32) {
    const int from = first * kChunkBytes + coordinates.lane % 4 * 16;
    Round b;
    b.there = bytes > from ? (bytes - from + kWarps * kChunkBytes - 1) / (kWarps * kChunkBytes) : 0;
#pragma unroll
    for (int n = 0; n < kBatchTiles; ++n) b.at[n] = sources[n].at ? sources[n].at + from : nullptr;
    each(b, [&](int s, int j, int n, uint4& value) {
      value = b.at[n] && j < b.there ? load(b.at[n] + offsets[s] + j * (kWarps * kChunkBytes)) : uint4{0, 0, 0, 0};
    });
    wait(b, sources);
#pragma unroll
    for (int s = 0; s < kSegments; ++s)
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (kChunksInRegisters > 0 || first + j * kWarps < weights.chunks)
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m) {
              const uint4 a = kChunksInRegisters > 0
                                  ? weights.chunks_in_registers[kChunksInRegisters > 0 ? s : 0]
                                                               [kChunksInRegisters > 0 ? j : 0][half][m]
                                  : weights.from_shared(s, first + j * kWarps, half, m);
#pragma unroll
              for (int n = 0; n < kBatchTiles; ++n) {
                const uint4& v = b.value[s][j][n];
                MmaTraits<T>::multiply(sum[((s * kInFlight + j) * 2 + half) % kChains][m][n], a, half ? v.z : v.x,
                                       half ? v.w : v.y, allow_tf32);
              }
            }
  }

  template <typename Body>
  static FUSED_RNN_DEVICE void each(Round& b, const Body& body) {
#pragma unroll
    for (int s = 0; s < kSegments; ++s)
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
#pragma unroll
        for (int n = 0; n < kBatchTiles; ++n) body(s, j, n, b.value[s][j][n]);
  }

  static FUSED_RNN_DEVICE void clear(float (&sums)[kRowTiles][kBatchTiles][4]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][n][e] = 0;
  }

  static FUSED_RNN_DEVICE uint4 load(const char* from) {
    if constexpr (kCluster)
      return load_fresh_shared(from);
    else
      return load_fresh(from);
  }

  static FUSED_RNN_DEVICE bool missing(const uint4& v) {
    return v.x == kMissing || v.y == kMissing || v.z == kMissing || v.w == kMissing;
  }

  // Reads again what is missing until all is there: the first alone, since what all read over and over is in the way of
  // what they wait for; when it has come, the others. In a cluster, makes room for what comes next.
  FUSED_RNN_DEVICE void wait(Round& b, const Source (&sources)[kBatchTiles]) const {
    for (bool again = true; again;) {
      again = false;
      each(b, [&](int s, int j, int n, uint4& value) {
        if (!sources[n].waits || !missing(value)) return;
        const char* from = b.at[n] + offsets[s] + j * (kWarps * kChunkBytes);
        value = load(from);
        if (!again)
          while (missing(value)) {
            pause();
            value = load(from);
          }
        again = true;
      });
    }
    if constexpr (kCluster)
      each(b, [&](int s, int j, int n, uint4&) {
        if (b.at[n] && j < b.there)
          *reinterpret_cast<uint4*>(b.at[n] + offsets[s] + j * (kWarps * kChunkBytes)) = {kMissing, kMissing, kMissing,
                                                                                          kMissing};
      });
    warp_barrier();
  }
};

}  // namespace fused_rnn::cuda
