// From a plan to the kernel that is built for it.

#pragma once

#include "cuda/conv/mma_correlation.cuh"
#include "cuda/conv/mma_weight_gradient.cuh"

namespace fused_rnn::cuda {

template <typename T, bool kGradient>
const char* launch_mma_correlation(const MmaCorrelationParams& params, const MmaCorrelationPlan& plan, void* stream) {
  const auto with = [&]<int kChannels>() {
    return launch(mma_correlate<T, kChannels, kGradient>,
                  {plan.blocks(), kMmaThreads, plan.shared_bytes(), 1, false, stream}, params);
  };
  return plan.channels == 64 ? with.template operator()<64>() : with.template operator()<128>();
}

template <typename T>
const char* launch_mma_weight_gradient(const MmaWeightGradientParams& params, void* stream) {
  const MmaWeightGradientPlan& plan = params.plan;
  const auto with = [&]<int kChannels>() {
    return launch(mma_sum_weight_gradient<T, kChannels>,
                  {plan.blocks(), kMmaThreads, plan.shared_bytes(), 1, false, stream}, params);
  };
  if (const char* error = plan.channels == 64 ? with.template operator()<64>() : with.template operator()<128>())
    return error;
  return launch(mma_add_weight_gradient<T>,
                {params.weight_blocks + params.bias_blocks, kMmaAddThreads, kMmaAddThreads * 16, 1, false, stream},
                params);
}

}  // namespace fused_rnn::cuda
