// From a plan to the kernel that is built for it.

#pragma once

#include "cuda/persistent/backward.cuh"
#include "cuda/persistent/forward.cuh"

namespace fused_rnn::cuda {

// Calls body.template operator()<PersistentTraits<...>>() with the traits of the plan's kernel, and returns what it
// returns.
template <typename Cell, typename T, bool kBackward, typename Body>
const char* with_traits(const PersistentPlan& plan, const Body& body) {
  const char* error = "no kernel is built for this plan";
  const auto if_planned = [&]<int kRowTiles, int kBatchTiles, bool kCluster, int kChunksInRegisters>() {
    if constexpr (is_instantiated(Cell::kGates, kBackward, sizeof(T), kCluster, kRowTiles, kBatchTiles,
                                  kChunksInRegisters))
      if (plan.row_tiles == kRowTiles && plan.batch_tiles == kBatchTiles && plan.cluster == kCluster &&
          plan.chunks_in_registers == kChunksInRegisters)
        error =
            body.template
            operator()<PersistentTraits<Cell, T, kBackward, kRowTiles, kBatchTiles, kCluster, kChunksInRegisters>>();
  };
  const auto with_chunks = [&]<int kRowTiles, int kBatchTiles, bool kCluster, int... kChunksInRegisters>() {
    (if_planned.template operator()<kRowTiles, kBatchTiles, kCluster, kChunksInRegisters>(), ...);
  };
  const auto with_batch_tiles = [&]<int kRowTiles, int... kBatchTiles>() {
    (with_chunks.template operator()<kRowTiles, kBatchTiles, false, 0, 1, 2, 3, 4>(), ...);
    (with_chunks.template operator()<kRowTiles, kBatchTiles, true, 0, 1, 2, 3, 4>(), ...);
  };
  const auto with_row_tiles = [&]<int... kRowTiles>() {
    (with_batch_tiles.template operator()<kRowTiles, 1, 2, 4>(), ...);
  };
  with_row_tiles.template operator()<1, 2, 3, 4, 6, 8>();
  return error;
}

// The same for the kernels in which warpgroups multiply.
template <typename Cell, typename T, bool kBackward, typename Body>
const char* with_warpgroup_traits(const PersistentPlan& plan, const Body& body) {
  const char* error = "no kernel is built for this plan";
  const auto if_planned = [&]<int kSplit>() {
    if constexpr (is_warpgroup_instantiated(Cell::kGates, kBackward, sizeof(T), kSplit))
      if (plan.split == kSplit) error = body.template operator()<WarpgroupTraits<Cell, T, kBackward, kSplit>>();
  };
  (if_planned.template operator()<1>(), if_planned.template operator()<2>(), if_planned.template operator()<4>());
  return error;
}

// Launches all directions at once, or one after the other.
template <typename Traits>
const char* launch_with(void (*kernel)(typename Traits::Params), Traits, typename Traits::Params params, void* stream) {
  if (const char* error = Handover<Traits>::prepare_launch(params, stream)) return error;
  PersistentPlan& plan = params.plan;
  const int64_t shared_bytes =
      SharedLayout(plan, params.hidden_size, sizeof(typename Traits::T), Traits::kSegments).total;
  const int cluster = plan.cluster ? plan.blocks : plan.split > 1 ? plan.split : 1;
  const bool cooperative = !plan.cluster && plan.blocks > 1;
  const Launch how = {
      int64_t(plan.blocks) * plan.groups * plan.directions, kThreads, shared_bytes, cluster, cooperative, stream};
  for (plan.first_direction = 0; plan.first_direction < params.directions; plan.first_direction += plan.directions) {
    const char* error = launch(kernel, how, params);
    // After kDoesNotFit the caller takes another plan, for which nothing must have been written yet.
    if (error == kDoesNotFit && plan.first_direction > 0) return "the GPU had room for one direction, but not for both";
    if (error != nullptr) return error;
  }
  return nullptr;
}

template <typename Cell, typename T>
const char* launch_persistent(const PersistentForwardParams<T>& params, void* stream) {
  return with_traits<Cell, T, /*kBackward=*/false>(params.plan, [&]<typename Traits>() {
    return launch_with(persistent_forward<Traits>, Traits(), params, stream);
  });
}

template <typename Cell, typename T>
const char* launch_persistent(const PersistentBackwardParams<T>& params, void* stream) {
  return with_traits<Cell, T, /*kBackward=*/true>(params.plan, [&]<typename Traits>() {
    return launch_with(persistent_backward<Traits>, Traits(), params, stream);
  });
}

template <typename Cell, typename T>
const char* launch_warpgroup(const PersistentForwardParams<T>& params, void* stream) {
  return with_warpgroup_traits<Cell, T, /*kBackward=*/false>(params.plan, [&]<typename Traits>() {
    return launch_with(persistent_forward<Traits>, Traits(), params, stream);
  });
}

template <typename Cell, typename T>
const char* launch_warpgroup(const PersistentBackwardParams<T>& params, void* stream) {
  return with_warpgroup_traits<Cell, T, /*kBackward=*/true>(params.plan, [&]<typename Traits>() {
    return launch_with(persistent_backward<Traits>, Traits(), params, stream);
  });
}

}  // namespace fused_rnn::cuda
