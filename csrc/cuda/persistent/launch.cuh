// From a plan to a kernel built for it.

#pragma once

#include "cuda/persistent/backward.cuh"
#include "cuda/persistent/forward.cuh"

namespace fused_rnn::cuda {

// Calls body.template operator()<row_tiles, batch_tiles, cluster, chunks_in_registers>() with the plan's numbers.
template <typename T, int kGates, bool kBackward, typename Body>
const char* with_tiles(const PersistentPlan& plan, const Body& body) {
  const char* error = "no kernel is built for this plan";
  const auto with_held = [&]<int kRowTiles, int kBatchTiles, bool kCluster, int... kChunksInRegisters>() {
    const auto one = [&]<int kOne>() {
      if constexpr (is_instantiated(kGates, kBackward, sizeof(T), kCluster, kRowTiles, kBatchTiles, kOne))
        if (plan.row_tiles == kRowTiles && plan.batch_tiles == kBatchTiles && plan.cluster == kCluster &&
            plan.chunks_in_registers == kOne)
          error = body.template operator()<kRowTiles, kBatchTiles, kCluster, kOne>();
    };
    (one.template operator()<kChunksInRegisters>(), ...);
  };
  const auto with_batch = [&]<int kRowTiles, int... kBatchTiles>() {
    (with_held.template operator()<kRowTiles, kBatchTiles, false, 0, 1, 2, 3, 4>(), ...);
    (with_held.template operator()<kRowTiles, kBatchTiles, true, 0, 1, 2, 3, 4>(), ...);
  };
  const auto with_rows = [&]<int... kRowTiles>() { (with_batch.template operator()<kRowTiles, 1, 2, 4>(), ...); };
  with_rows.template operator()<1, 2, 3, 4, 6, 8>();
  return error;
}

// Launches all directions at once, or one after the other.
template <typename Params>
const char* launch_directions(void (*kernel)(Params), Params params, int64_t shared_bytes, void* stream) {
  PersistentPlan& plan = params.plan;
  const Launch how = {int64_t(plan.blocks) * plan.groups * plan.directions,
                      kThreads,
                      shared_bytes,
                      plan.cluster ? plan.blocks : 1,
                      !plan.cluster && plan.blocks > 1,
                      stream};
  for (plan.first_direction = 0; plan.first_direction < params.directions; plan.first_direction += plan.directions)
    if (const char* error = launch(kernel, how, params)) return error;
  return nullptr;
}

template <typename Cell, typename T>
const char* launch_persistent(const PersistentForwardParams<T, float>& params, void* stream) {
  const SharedLayout layout(params.plan, params.hidden_size, sizeof(T), 1);
  const int64_t bytes = params.steps.rows * params.directions * params.hidden_size * int64_t(sizeof(T));
  if (!params.plan.cluster)
    if (const char* error = fill_with_ones(params.output, bytes, stream)) return error;
  return with_tiles<T, Cell::kGates, false>(
      params.plan, [&]<int kRowTiles, int kBatchTiles, bool kCluster, int kChunksInRegisters>() {
        return launch_directions(persistent_forward<Cell, T, kRowTiles, kBatchTiles, kCluster, kChunksInRegisters>,
                                 params, layout.total, stream);
      });
}

template <typename Cell, typename T>
const char* launch_persistent(const PersistentBackwardParams<T, float>& params, void* stream) {
  const SharedLayout layout(params.plan, params.hidden_size, sizeof(T), Cell::kGates);
  const int64_t bytes = params.steps.rows * params.directions * 4 * params.hidden_size * int64_t(sizeof(T));
  if (!params.plan.cluster)
    if (const char* error = fill_with_ones(params.grad_gates, bytes, stream)) return error;
  return with_tiles<T, Cell::kGates, true>(
      params.plan, [&]<int kRowTiles, int kBatchTiles, bool kCluster, int kChunksInRegisters>() {
        return launch_directions(persistent_backward<Cell, T, kRowTiles, kBatchTiles, kCluster, kChunksInRegisters>,
                                 params, layout.total, stream);
      });
}

}  // namespace fused_rnn::cuda
