// What a persistent kernel is compiled for.

#pragma once

#include <type_traits>

#include "cells/cells.h"
#include "cuda/kit/activation.cuh"
#include "cuda/kit/dtype.cuh"
#include "cuda/persistent/plan.h"
#include "params/persistent.h"

namespace fused_rnn::cuda {

// What all persistent kernels of a cell have in common.
template <typename Cell_, typename T_, bool kBackward_>
struct PassTraits {
  using Cell = Cell_;
  using T = T_;  // of the layer's tensors; everything is computed in float
  static constexpr bool kBackward = kBackward_;

  static_assert(sizeof(T) <= 4, "matrix instructions that accumulate in float compute a product, so T is not double");
  static_assert(Cell::kStates <= 2,
                "a block keeps h and at most one more state in shared memory, and the params have "
                "pointers for no other");

  using Params = std::conditional_t<kBackward, PersistentBackwardParams<T>, PersistentForwardParams<T>>;
  using Math = ActivationOf<T>;

  static constexpr bool kHasCellState = Cell::kStates > 1;
  // Parts of hidden_size values that blocks hand to one another for each sequence and step: forward the hidden values,
  // backward the gradients of the recurrent part of each gate.
  static constexpr int kSegments = kBackward ? Cell::kGates : 1;
};

// Kernels whose warps share out the depth of a product, with the matrix instructions of a warp.
template <typename Cell, typename T, bool kBackward, int kRowTiles_, int kBatchTiles_, bool kCluster_,
          int kChunksInRegisters_>
struct PersistentTraits : PassTraits<Cell, T, kBackward> {
  using PassTraits<Cell, T, kBackward>::kSegments;
  static constexpr int kRowTiles = kRowTiles_;                    // see PersistentPlan
  static constexpr int kBatchTiles = kBatchTiles_;                // see PersistentPlan
  static constexpr bool kCluster = kCluster_;                     // see PersistentPlan
  static constexpr int kSplit = 0;                                // see PersistentPlan
  static constexpr int kChunksInRegisters = kChunksInRegisters_;  // see PersistentPlan

  static_assert(is_instantiated(Cell::kGates, kBackward, sizeof(T), kCluster, kRowTiles, kBatchTiles,
                                kChunksInRegisters),
                "choose_plan never chooses this plan");

  static constexpr int kSequences = kTileBatch * kBatchTiles;  // that a block works on at a time
  static constexpr int kLaneSequences = kBatchTiles;           // of these, those whose values a lane loads
  static constexpr int kParts = kWarps;                        // into which the depth of a product is divided
  static constexpr int kPairs = 1;                             // pairs of units that a thread finishes at a time
  static constexpr int kSegmentsInFlight = kSegments;          // whose loads a warp issues together
  // Chunks of each segment whose loads a warp issues together: all that lie in registers, else as many as leave room
  // for the sums.
  static constexpr int kChunksInFlight = kChunksInRegisters > 0 ? kChunksInRegisters
                                         : kSegments == 1       ? 4
                                                                : 16 / kSegments / kBatchTiles;
};

// Kernels in which a warpgroup multiplies 64 sequences at a time, and the blocks of a cluster share out the depth of a
// product; see warpgroup_product.cuh.
template <typename Cell, typename T, bool kBackward, int kSplit_>
struct WarpgroupTraits : PassTraits<Cell, T, kBackward> {
  static constexpr int kSplit = kSplit_;  // see PersistentPlan
  static constexpr int kRowTiles = divide_up(rows_of_units(Cell::kGates, kBackward, kWarpgroupUnits), kTileRows);
  static constexpr int kSequences = kWarpgroupSequences;
  static constexpr int kBatchTiles = kSequences / kTileBatch;
  static constexpr bool kCluster = false;  // values travel through the L2 cache
  static constexpr int kChunksInRegisters = 0;

  static_assert(is_warpgroup_instantiated(Cell::kGates, kBackward, sizeof(T), kSplit),
                "choose_plan never chooses this plan");

  static constexpr int kLaneSequences = 2, kParts = kSplit, kSegmentsInFlight = 1;
  static constexpr int kChunksInFlight = kWarpgroupChunks;
  static constexpr int kPairs = kSequences * kWarpgroupUnits / kUnitsPerThread / kThreads;
};

}  // namespace fused_rnn::cuda
