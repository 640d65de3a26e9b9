// What a persistent kernel is compiled for.

#pragma once

#include <type_traits>

#include "cells/cells.h"
#include "cuda/kit/activation.cuh"
#include "cuda/kit/dtype.cuh"
#include "cuda/persistent/plan.h"
#include "params/persistent.h"

namespace fused_rnn::cuda {

template <typename Cell_, typename T_, bool kBackward_, int kRowTiles_, int kBatchTiles_, bool kCluster_,
          int kChunksInRegisters_>
struct PersistentTraits {
  using Cell = Cell_;
  using T = T_;  // of the layer's tensors; everything is computed in float
  static constexpr bool kBackward = kBackward_;
  static constexpr int kRowTiles = kRowTiles_;                    // see PersistentPlan
  static constexpr int kBatchTiles = kBatchTiles_;                // see PersistentPlan
  static constexpr bool kCluster = kCluster_;                     // see PersistentPlan
  static constexpr int kChunksInRegisters = kChunksInRegisters_;  // see PersistentPlan

  static_assert(sizeof(T) <= 4, "matrix instructions that accumulate in float compute a product, so T is not double");
  static_assert(is_instantiated(Cell::kGates, kBackward, sizeof(T), kCluster, kRowTiles, kBatchTiles,
                                kChunksInRegisters),
                "choose_plan never chooses this plan");
  static_assert(Cell::kStates <= 2,
                "a block keeps h and at most one more state in shared memory, and the params have "
                "pointers for no other");

  using Params = std::conditional_t<kBackward, PersistentBackwardParams<T>, PersistentForwardParams<T>>;
  using Math = ActivationOf<T>;

  static constexpr bool kHasCellState = Cell::kStates > 1;
  // Parts of hidden_size values that blocks hand to one another for each sequence and step: forward the hidden values,
  // backward the gradients of the recurrent part of each gate.
  static constexpr int kSegments = kBackward ? Cell::kGates : 1;
  static constexpr int kSequences = kTileBatch * kBatchTiles;  // that a block works on at a time
  // Chunks of each segment whose loads a warp issues together: all that lie in registers, else as many as leave room
  // for the sums.
  static constexpr int kChunksInFlight = kChunksInRegisters > 0 ? kChunksInRegisters
                                         : kSegments == 1       ? 4
                                                                : 16 / kSegments / kBatchTiles;
};

}  // namespace fused_rnn::cuda
