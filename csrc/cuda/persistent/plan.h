// How the persistent kernels share out a layer over the GPU, for host and device alike.
//
// A group of thread blocks walks through all steps of one direction for some of the sequences; groups are independent
// of each other. The blocks of a group share out the hidden units, and each keeps the rows of the recurrent weights
// that belong to its units on the chip for the whole call. Within a block, the warps share out the sum over the values
// that blocks hand to one another (see handover.cuh), and a thread then finishes two neighbouring units of one
// sequence.

#pragma once

#include <cstdint>

#include "cuda/kit/device_info.h"
#include "cuda/kit/division.h"
#include "cuda/kit/swizzle.h"
#include "params/persistent.h"

namespace fused_rnn::cuda {

constexpr int kWarps = 8;  // of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 16;       // rows of the weights in one matrix instruction
constexpr int kTileBatch = 8;       // sequences in one matrix instruction
constexpr int kChunkBytes = 64;     // of a row that two matrix instructions multiply; chunks go to warps in turn
constexpr int kUnitsPerThread = 2;  // neighbouring units that a thread finishes

// How many chunks of a segment one warp multiplies at most.
FUSED_RNN_HOST_DEVICE constexpr int64_t chunks_of_warp(int64_t hidden_size, int64_t element_bytes) {
  return divide_up(hidden_size * element_bytes, kChunkBytes * kWarps);
}

// Rows of the weights in a block of so many units.
FUSED_RNN_HOST_DEVICE constexpr int rows_of_units(int gates, bool backward, int units) {
  return backward ? units : gates * units;
}

// The plans for which kernels are built. Blocks have 8, 16 or 32 units, and in a cluster several tiles of sequences
// only with 32. Weights may lie in registers where they fit: fewer of them in float32, whose three products need
// registers too, and none for a cell of one gate, where reading its few weights from shared memory takes at most a
// tenth of an estimated step.
FUSED_RNN_HOST_DEVICE constexpr bool is_instantiated(int gates, bool backward, int64_t element_bytes, bool cluster,
                                                     int row_tiles, int batch_tiles, int chunks_in_registers) {
  int units = 8;
  while (units <= 32 && row_tiles != divide_up(rows_of_units(gates, backward, units), kTileRows)) units *= 2;
  if (units > 32 || row_tiles * batch_tiles > 16) return false;
  if (cluster && batch_tiles > 1 && units < 32) return false;
  if (batch_tiles == 4 ? cluster || units > 16 : batch_tiles != 1 && batch_tiles != 2) return false;
  if (chunks_in_registers == 0) return true;
  const int tiles = chunks_in_registers * row_tiles * (backward ? gates : 1);
  if (gates == 1 || batch_tiles > 1 || tiles > (element_bytes == 2 ? 16 : 6)) return false;
  if (backward) return chunks_in_registers == 1 || (chunks_in_registers == 3 && row_tiles == 1 && !cluster);
  return units > 8 && (chunks_in_registers == 2 || (chunks_in_registers == 4 && row_tiles <= 4 && !cluster));
}

// Kernels in which a warpgroup multiplies, on GPUs of compute capability 9.0: the units of a block, the sequences that
// it works on at a time, the warps that multiply, and the chunks that they multiply without a branch in between.
constexpr int kWarpgroupUnits = 16, kWarpgroupSequences = 64, kWarpgroupWarps = 4, kWarpgroupChunks = 4;

// The plans for which such kernels are built.
FUSED_RNN_HOST_DEVICE constexpr bool is_warpgroup_instantiated(int /*gates*/, bool backward, int64_t element_bytes,
                                                               int split) {
  return element_bytes == 2 && (backward ? split == 2 || split == 4 : split == 1 || split == 2);
}

// Floats between the partial sums of two sequences: an odd multiple of 4, so that no two lanes of a warp use the same
// bank of shared memory.
FUSED_RNN_HOST_DEVICE constexpr int partial_stride(int row_tiles) { return row_tiles * kTileRows + 4; }

// Where things lie in a block's shared memory, in bytes; the weights come first. `segments` are the parts of
// hidden_size values that blocks hand to one another for each sequence: 1 forward, kGates backward.
struct SharedLayout {
  int32_t chunks;           // of each segment
  int32_t exchange_stride;  // between sequences: an odd multiple of 64, so that no two lanes use the same bank
  int64_t partial;          // the partial sums of the warps
  int64_t states;           // the block's states
  int64_t exchange;         // in a cluster the two buffers of the hand-over
  int64_t exchange_size;    // of one of them
  int64_t total;

  FUSED_RNN_HOST_DEVICE constexpr SharedLayout(const PersistentPlan& plan, int64_t hidden_size, int64_t element_bytes,
                                               int64_t segments)
      : chunks(static_cast<int32_t>(divide_up(hidden_size * element_bytes, kChunkBytes))),
        exchange_stride(static_cast<int32_t>((segments * chunks / 2 * 2 + 1) * kChunkBytes)),
        partial(plan.split > 0 ? warpgroup_weights(plan, segments)
                               : int64_t(plan.row_tiles) * kTileRows * segments * chunks * kChunkBytes),
        states(partial + int64_t(plan.partials) * (plan.split > 0 ? plan.split : kWarps) * plan.batch_tiles *
                             kTileBatch * partial_stride(plan.row_tiles) * 4),
        exchange(round_up(states + 2 * int64_t(plan.sequences) * plan.units * 4, 16)),
        exchange_size(plan.cluster ? round_up(plan.sequences, kTileBatch * plan.batch_tiles) * exchange_stride : 0),
        total(exchange + 2 * exchange_size + (plan.split > 0 ? kAlignment : 0)) {}

  // The chunks of each segment that one block of a cluster multiplies, where the blocks share out the depth. Some may
  // lie past the end, where weights and values are zero.
  FUSED_RNN_HOST_DEVICE constexpr int chunks_of_part(int split) const {
    return static_cast<int>(round_up(divide_up(chunks, split), kWarpgroupChunks));
  }

 private:
  // The rows of all blocks of a cluster, but only the block's part of their depth, two chunks side by side.
  FUSED_RNN_HOST_DEVICE constexpr int64_t warpgroup_weights(const PersistentPlan& plan, int64_t segments) const {
    return int64_t(plan.split) * plan.row_tiles * kTileRows * segments * chunks_of_part(plan.split) * kChunkBytes;
  }
};

// What a plan is made for.
struct PersistentProblem {
  int64_t batch, hidden_size, directions;
  int gates;          // kGates of the cell
  int element_bytes;  // of the weights: 2, 4 or 8
  bool allow_tf32;    // whether float32 products may be rounded to tf32
  bool backward;
  bool projected;  // whether the hidden values are projected
  bool one_step;   // whether the layer has a single step

  constexpr bool operator==(const PersistentProblem& other) const = default;
};

// Which plans may be chosen, for tests and for tuning.
enum class Path { kAny, kStepwise, kCluster, kGrid, kWarpgroup };
struct PlanOverride {
  Path path = Path::kAny;
  int blocks = 0, groups = 0, batch_tiles = 0;  // 0: any
  int chunks_in_registers = -1;                 // -1: any
  int split = 0;                                // 0: any

  constexpr bool operator==(const PlanOverride& other) const = default;
};

// Where things lie in the shared memory of a plan's blocks.
constexpr SharedLayout shared_layout(const PersistentPlan& plan, const PersistentProblem& problem) {
  return {plan, problem.hidden_size, problem.element_bytes, problem.backward ? problem.gates : 1};
}

// Steps that repay the copies that padding takes. Assumed, not measured.
constexpr int64_t kStepsToPad = 16;

// Whether the stepwise path computes a half-precision layer in float32; CudaLayer::stepwise_in_float32() in ops/ says
// why.
constexpr bool stepwise_in_float32(int64_t hidden_size, int element_bytes) {
  return element_bytes == 2 && hidden_size <= kMostUnitsInFloat32;
}

// Returns the hidden size that a layer of so many steps is to be padded to for the persistent kernels: the next one
// whose values are a multiple of 16 bytes, if that pays, else its own.
int64_t padded_size(const PersistentProblem& problem, int64_t time, const PlanOverride& plan_override);

// Returns the plan that should take the least time, or one with blocks == 0 if the stepwise path should be faster or is
// the only one possible.
PersistentPlan choose_plan(const PersistentProblem& problem, const Device& device, const PlanOverride& plan_override);

// Returns why choose_plan has no plan for a problem.
const char* why_stepwise(const PersistentProblem& problem, const PlanOverride& plan_override);

}  // namespace fused_rnn::cuda
