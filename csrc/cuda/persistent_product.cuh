// The product inside a step of the persistent kernels: rows of the recurrent weights, which stay in shared memory, times
// what the blocks of the group made of the step before, 16 rows by 8 sequences for each matrix instruction.
//
// Blocks of a grid hand these values on through the L2 cache, without flags: the memory is filled with a NaN of all ones
// beforehand, which nobody stores, and every value is read again until it is there. Blocks of a cluster write them into
// each other's shared memory and meet at a barrier.

#pragma once

#include "cuda/number.cuh"
#include "cuda/persistent_plan.h"

namespace fused_rnn::cuda {

constexpr int kWarp = 32;

// The part of a thread in its team, of the team in its block, and of the block in the layer.
struct Place {
  int lane, row_warp, depth_warp;
  int team, thread, threads;  // the team, this thread's number in it, and how many threads it has
  int rank;                   // of the block in its group
  int direction;
  int first_unit, units;          // of this block
  int first_sequence, sequences;  // of this team; none for the last teams of a small batch

  FUSED_RNN_DEVICE Place(const PersistentPlan& plan, int hidden_size, int batch)
      : lane(threadIdx.x % kWarp),
        threads(plan.row_warps * plan.depth_warps * kWarp),
        rank(blockIdx.x % plan.blocks),
        direction(blockIdx.x / plan.blocks / plan.groups),
        first_unit(rank * plan.units),
        units(at_most(hidden_size - first_unit, plan.units)) {
    team = threadIdx.x / threads;
    thread = threadIdx.x % threads;
    row_warp = thread / kWarp % plan.row_warps;
    depth_warp = thread / kWarp / plan.row_warps;
    first_sequence = (blockIdx.x / plan.blocks % plan.groups * plan.teams + team) * plan.sequences;
    sequences = at_most(batch - first_sequence, plan.sequences);
  }

 private:
  static FUSED_RNN_DEVICE int at_most(int value, int limit) { return value < limit ? value : limit; }
};

// The position of 16 bytes of a row of the weights among the tiles: the row's word w of chunk c goes to instruction w / 2.
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

// Fills the tiles. At::split says in which order they are fetched; at(row, segment, k) returns 16 bytes of values from k on, zeros past the block's rows.
template <typename T, typename At>
FUSED_RNN_DEVICE void load_weights(char* shared, int rows, int chunks, int segments, const At& at) {
  const int chunks_per_segment = chunks / segments;
#pragma unroll 4
  for (int index = threadIdx.x; index < rows * chunks * 4; index += blockDim.x) {
    const auto [row, vector] = At::split(index, rows, chunks * 4);
    const int chunk = vector / 4, segment = chunk / chunks_per_segment;
    const int k = (chunk % chunks_per_segment * 4 + vector % 4) * Number<T>::kPerVector;
    store_weights(shared, chunks, row, chunk, vector % 4, at(row, segment, k));
  }
}

// Values of the step before that lie in global memory: for each tile of sequences the row of this lane's sequence, null
// for a sequence without that step, and whether other blocks may still be writing it.
template <typename T, typename Cell, int kSegments, int kBatchTiles>
struct FreshSource {
  const T* row[kBatchTiles];
  bool waits[kBatchTiles];
  int hidden_size, chunks_per_segment, lane_offset;

  FUSED_RNN_DEVICE uint4 load(int chunk, int tile) const {
    int column = 0;
    if constexpr (kSegments > 1) {
#pragma unroll
      for (int segment = 1; segment < kSegments; ++segment)
        if (chunk >= chunks_per_segment) {
          chunk -= chunks_per_segment;
          column = Cell::saved_of(segment) * hidden_size;
        }
    }
    const int k = chunk * 4 * Number<T>::kPerVector + lane_offset;
    if (row[tile] == nullptr || k >= hidden_size) return {0, 0, 0, 0};
    return load_fresh(row[tile] + column + k);
  }
  FUSED_RNN_DEVICE bool missing(const uint4& value, int tile) const {
    return waits[tile] && !Number<T>::complete(value);
  }
};

// The same in this block's shared memory, complete after the cluster's barrier.
struct SharedSource {
  const char* at;  // of this lane's first sequence and 16 bytes
  int stride;

  FUSED_RNN_DEVICE uint4 load(int chunk, int tile) const {
    return *reinterpret_cast<const uint4*>(at + tile * kTileBatch * stride + chunk * kChunkBytes);
  }
  FUSED_RNN_DEVICE bool missing(const uint4&, int) const { return false; }
};

template <typename T, int kRowTiles, int kBatchTiles>
struct Product {
  // Chunks whose loads are under way together.
  static constexpr int kInFlight = 12 / kBatchTiles;
  // Sums of their own for every other instruction, where else each would wait for the one before.
  static constexpr int kChains = kRowTiles * kBatchTiles >= 4 ? 1 : 4 / (kRowTiles * kBatchTiles);

  float sum[kChains][kRowTiles][kBatchTiles][4];

  template <typename Source>
  FUSED_RNN_DEVICE void run(const char* weights, int chunks, const PersistentPlan& plan, const Place& place,
                            const Source& source, bool exact) {
#pragma unroll
    for (int i = 0; i < kChains; ++i)
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[i][m][n][e] = 0;
    const auto* tiles = reinterpret_cast<const uint4*>(weights) + place.row_warp * kRowTiles * chunks * 2 * kWarp;
    const int step = plan.depth_warps;
    for (int first = place.depth_warp; first < chunks; first += kInFlight * step) {
      uint4 b[kInFlight][kBatchTiles];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
#pragma unroll
        for (int n = 0; n < kBatchTiles; ++n)
          b[j][n] = first + j * step < chunks ? source.load(first + j * step, n) : uint4{0, 0, 0, 0};
      for (bool again = true; again;) {
        again = false;
#pragma unroll
        for (int j = 0; j < kInFlight; ++j)
#pragma unroll
          for (int n = 0; n < kBatchTiles; ++n)
            if (source.missing(b[j][n], n)) {
              b[j][n] = source.load(first + j * step, n);
              again = true;
            }
        if (again) pause();
      }
      warp_barrier();
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (first + j * step < chunks) add(tiles, chunks, first + j * step, j, place.lane, b[j], exact);
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

  // Leaves the sums in shared memory: [batch_tiles * 8 sequences][stride], of this warp's rows.
  FUSED_RNN_DEVICE void leave(float* partial, int stride, const Place& place) const {
    const int sequence = place.lane % 4 * 2, row = place.row_warp * kRowTiles * kTileRows + place.lane / 4;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kBatchTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          partial[(n * kTileBatch + sequence + e % 2) * stride + row + m * kTileRows + e / 2 * 8] = sum[0][m][n][e];
  }

 private:
  FUSED_RNN_DEVICE void add(const uint4* tiles, int chunks, int chunk, int j, int lane,
                            const uint4 (&b)[kBatchTiles], bool exact) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const uint4 a = tiles[((m * chunks + chunk) * 2 + half) * kWarp + lane];
#pragma unroll
        for (int n = 0; n < kBatchTiles; ++n)
          Number<T>::multiply(sum[(j * 2 + half) % kChains][m][n], a, half ? b[n].z : b[n].x, half ? b[n].w : b[n].y,
                              exact);
      }
  }
};

}  // namespace fused_rnn::cuda
