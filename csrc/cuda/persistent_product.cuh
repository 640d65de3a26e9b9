// The product inside a step of the persistent kernels: rows of the recurrent weights, which stay in shared memory, times
// what the blocks of the group made of the step before, 16 rows by 8 sequences for each matrix instruction.
//
// Blocks hand these values on without flags and barriers: where they are to come there is a NaN of all ones, which nobody
// hands on, and a reader reads again until it is gone. On a grid the values travel through the L2 cache, each to a place
// of its own that is filled with ones beforehand. In a cluster every block writes them into the shared memory of all
// others, into two buffers in turn, and whoever has read a place fills it with ones again: it is written anew only by
// those who have what this block made of it.

#pragma once

#include "cuda/number.cuh"
#include "cuda/persistent_plan.h"

namespace fused_rnn::cuda {

constexpr int kWarp = 32;

// The part of a thread in its block and of the block in the layer.
struct Place {
  int lane, warp;
  int rank;  // of the block in its group
  int direction;
  int first_unit, units;          // of this block
  int first_sequence, sequences;  // of this group

  FUSED_RNN_DEVICE Place(const PersistentPlan& plan, int hidden_size, int batch)
      : lane(threadIdx.x % kWarp),
        warp(threadIdx.x / kWarp),
        rank(blockIdx.x % plan.blocks),
        direction(blockIdx.x / plan.blocks / plan.groups),
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

// Fills the tiles. At::split says in which order they are fetched; at(row, segment, k) returns 16 bytes of values from k
// on, zeros past the block's rows.
template <typename T, typename At>
FUSED_RNN_DEVICE void load_weights(char* shared, int rows, int chunks, int segments, const At& at) {
#pragma unroll 4
  for (int index = threadIdx.x; index < rows * segments * chunks * 4; index += kThreads) {
    const auto [row, vector] = At::split(index, rows, segments * chunks * 4);
    const int chunk = vector / 4;
    const int k = (chunk % chunks * 4 + vector % 4) * Number<T>::kPerVector;
    store_weights(shared, segments * chunks, row, chunk, vector % 4, at(row, chunk / chunks, k));
  }
}

// Where what was handed on for one sequence starts, in global memory or in this block's shared memory; null for zeros.
struct Source {
  char* at;
  bool waits;  // whether it may still be missing
};

template <typename T, int kSegments, int kRowTiles, int kBatchTiles, bool kCluster>
struct Product {
  // Chunks of each segment whose loads are under way together.
  static constexpr int kInFlight = kSegments == 1 ? 4 : 16 / kSegments / kBatchTiles;
  // Sums of their own for every other instruction, where else each would wait for the one before.
  static constexpr int kChains = kRowTiles * kBatchTiles >= 4 ? 1 : 4 / (kRowTiles * kBatchTiles);

  float sum[kChains][kRowTiles][kBatchTiles][4];
  int chunks;                    // of a segment
  int bytes;                     // of a segment
  int offsets[kSegments];        // in bytes, of the segments
  const uint4* weights;

  FUSED_RNN_DEVICE void run(Source (&sources)[kBatchTiles], const Place& place, bool exact) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) clear(sum[i]);
    const int from = place.lane % 4 * 16;
    for (int first = place.warp; first < chunks; first += kInFlight * kWarps) {
      uint4 b[kSegments][kInFlight][kBatchTiles];
#pragma unroll
      for (int s = 0; s < kSegments; ++s)
#pragma unroll
        for (int j = 0; j < kInFlight; ++j)
#pragma unroll
          for (int n = 0; n < kBatchTiles; ++n) {
            const int offset = (first + j * kWarps) * kChunkBytes + from;
            b[s][j][n] = sources[n].at && offset < bytes ? load(sources[n].at + offsets[s] + offset)
                                                         : uint4{0, 0, 0, 0};
          }
      wait(b, sources, first, from);
#pragma unroll
      for (int s = 0; s < kSegments; ++s)
#pragma unroll
        for (int j = 0; j < kInFlight; ++j)
          if (first + j * kWarps < chunks)
            add(weights + (s * chunks + first + j * kWarps) * 2 * kWarp + place.lane, (s * kInFlight + j) * 2, b[s][j],
                exact);
    }
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
  FUSED_RNN_DEVICE void leave(float* partial, const Place& place) const {
    float* at = partial + place.lane % 4 * 2 * partial_stride(kRowTiles) + place.lane / 4;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          at[(n * kTileBatch + e % 2) * partial_stride(kRowTiles) + m * kTileRows + e / 2 * 8] = sum[0][m][n][e];
  }

 private:
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

  // Reads again what is missing until all is there; in a cluster, makes room for what comes next.
  FUSED_RNN_DEVICE void wait(uint4 (&b)[kSegments][kInFlight][kBatchTiles], Source (&sources)[kBatchTiles], int first,
                             int from) const {
    for (bool again = true; again;) {
      again = false;
#pragma unroll
      for (int s = 0; s < kSegments; ++s)
#pragma unroll
        for (int j = 0; j < kInFlight; ++j)
#pragma unroll
          for (int n = 0; n < kBatchTiles; ++n)
            if (sources[n].waits && missing(b[s][j][n])) {
              b[s][j][n] = load(sources[n].at + offsets[s] + (first + j * kWarps) * kChunkBytes + from);
              again = true;
            }
      if (again) pause();
    }
    if constexpr (kCluster) {
#pragma unroll
      for (int s = 0; s < kSegments; ++s)
#pragma unroll
        for (int j = 0; j < kInFlight; ++j)
#pragma unroll
          for (int n = 0; n < kBatchTiles; ++n) {
            const int offset = (first + j * kWarps) * kChunkBytes + from;
            if (sources[n].at && offset < bytes)
              *reinterpret_cast<uint4*>(sources[n].at + offsets[s] + offset) = {kMissing, kMissing, kMissing, kMissing};
          }
    }
    warp_barrier();
  }

  // Adds one chunk: tiles of its weights follow one another kRowTiles times, all segments' chunks apart.
  FUSED_RNN_DEVICE void add(const uint4* tiles, int chain, const uint4 (&b)[kBatchTiles], bool exact) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const uint4 a = tiles[m * kSegments * chunks * 2 * kWarp + half * kWarp];
#pragma unroll
        for (int n = 0; n < kBatchTiles; ++n)
          Number<T>::multiply(sum[(chain + half) % kChains][m][n], a, half ? b[n].z : b[n].x, half ? b[n].w : b[n].y,
                              exact);
      }
  }
};

}  // namespace fused_rnn::cuda
