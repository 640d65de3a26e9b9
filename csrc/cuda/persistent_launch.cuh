// From a plan to a kernel built for it.

#pragma once

#include "cuda/persistent_backward.cuh"
#include "cuda/persistent_forward.cuh"

namespace fused_rnn::cuda {

// Calls body.template operator()<row_tiles, batch_tiles, cluster>() with the plan's numbers.
template <bool kBackward, int kRowTiles = 1, int kBatchTiles = 1, typename Body>
const char* with_tiles(const PersistentPlan& plan, const Body& body) {
  if constexpr (is_instantiated(kRowTiles, kBatchTiles, kBackward))
    if (plan.row_tiles == kRowTiles && plan.batch_tiles == kBatchTiles)
      return plan.cluster ? body.template operator()<kRowTiles, kBatchTiles, true>()
                          : body.template operator()<kRowTiles, kBatchTiles, false>();
  if constexpr (kBatchTiles < 4)
    return with_tiles<kBackward, kRowTiles, 2 * kBatchTiles>(plan, body);
  else if constexpr (kRowTiles < 8)
    return with_tiles<kBackward, kRowTiles + 1, 1>(plan, body);
  else
    return "no kernel is built for this plan";
}

template <typename Params>
Launch launch_of(const Params& params, int64_t shared_bytes, void* stream) {
  const PersistentPlan& plan = params.plan;
  return {int64_t(plan.blocks) * plan.groups * params.directions,
          kThreads,
          shared_bytes,
          plan.cluster ? plan.blocks : 1,
          !plan.cluster && plan.blocks > 1,
          stream};
}

template <typename Cell, typename T>
const char* launch_persistent(const CudaForward<T, float>& params, void* stream) {
  const SharedLayout layout(params.plan, params.hidden_size, sizeof(T), 1);
  const int64_t bytes = params.steps.rows * params.directions * params.hidden_size * int64_t(sizeof(T));
  if (!params.plan.cluster)
    if (const char* error = fill_with_ones(params.output, bytes, stream)) return error;
  return with_tiles<false>(params.plan, [&]<int kRowTiles, int kBatchTiles, bool kCluster>() {
    return launch(persistent_forward<Cell, T, kRowTiles, kBatchTiles, kCluster>,
                  launch_of(params, layout.total, stream), params);
  });
}

template <typename Cell, typename T>
const char* launch_persistent(const CudaBackward<T, float>& params, void* stream) {
  const SharedLayout layout(params.plan, params.hidden_size, sizeof(T), Cell::kGates);
  const int64_t bytes = params.steps.rows * params.directions * 4 * params.hidden_size * int64_t(sizeof(T));
  if (!params.plan.cluster)
    if (const char* error = fill_with_ones(params.grad_gates, bytes, stream)) return error;
  return with_tiles<true>(params.plan, [&]<int kRowTiles, int kBatchTiles, bool kCluster>() {
    return launch(persistent_backward<Cell, T, kRowTiles, kBatchTiles, kCluster>,
                  launch_of(params, layout.total, stream), params);
  });
}

}  // namespace fused_rnn::cuda
