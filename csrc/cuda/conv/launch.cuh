// From a plan to the kernel that is built for it.

#pragma once

#include "cuda/conv/first_layer.cuh"
#include "cuda/conv/weight_gradient.cuh"

namespace fused_rnn::cuda {

template <bool kBFloat16, bool kGradient>
const char* launch_correlation(const CorrelationParams& params, void* stream) {
  const char* error = "no kernel is built for this plan";
  const auto if_planned = [&]<int kRows, int kGroups>() {
    if constexpr (is_built(kRows, kGroups))
      if (params.plan.rows == kRows && params.plan.channel_groups == kGroups)
        error = launch(
            correlate<kBFloat16, kRows, kGroups, kGradient>,
            {params.plan.blocks, threads_of(kGroups), params.plan.shared_bytes, 1, false, stream, /*early=*/true},
            params);
  };
  const auto with_rows = [&]<int... kRows>() {
    (if_planned.template operator()<kRows, 1>(), ...);
    (if_planned.template operator()<kRows, 2>(), ...);
  };
  with_rows.template operator()<32, 28, 16, 14, 8>();
  return error;
}

template <bool kBFloat16, int kGroups>
const char* launch_weight_gradient(const WeightGradientParams& params, void* stream) {
  const char* error = launch(
      sum_weight_gradient<kBFloat16, kGroups>,
      {params.plan.blocks, gradient_threads(kGroups), params.plan.shared_bytes, 1, false, stream, /*early=*/true},
      params);
  if (error) return error;
  const auto add = [&]<int kRows>() -> const char* {
    const int64_t row_blocks =
        params.grad_weight ? divide_up(params.out_channels, kRows * kAddGroups / params.addends) : 0;
    const int64_t blocks = row_blocks * params.in_blocks * params.runs +
                           (params.grad_bias ? divide_up(params.out_channels, kChannels) : 0);
    if (blocks == 0) return nullptr;
    return launch(add_weight_gradient<kBFloat16, kGroups, kRows>,
                  {blocks, kAddThreads, kRows * kAddThreads * 16, 1, false, stream, /*early=*/true}, params);
  };
  constexpr int64_t kEnoughBlocks = 264;  // twice as many as a H200 has multiprocessors
  const int64_t outputs = int64_t(params.out_channels) * params.in_blocks * params.runs;
  return outputs * params.addends / (kAddRows * kAddGroups) >= kEnoughBlocks ? add.template operator()<kAddRows>()
                                                                             : add.template operator()<1>();
}

template <bool kBFloat16>
const char* launch_first_layer(const FirstLayerParams& params, void* stream) {
  return launch(convolve_first_layer<kBFloat16>,
                {params.plan.blocks, kFirstThreads, params.plan.shared_bytes, 1, false, stream, /*early=*/true},
                params);
}

template <bool kBFloat16>
const char* launch_first_layer_gradient(const FirstLayerParams& params, void* stream) {
  const char* error = "no kernel is built for this plan";
  const auto if_planned = [&]<int kOutBlocks, int kDepthBlocks>() {
    if constexpr (is_built_first(kOutBlocks, kDepthBlocks))
      if (params.plan.out_blocks == kOutBlocks && params.plan.depth_blocks == kDepthBlocks)
        error = launch(sum_first_layer_gradient<kBFloat16, kOutBlocks, kDepthBlocks>,
                       {params.plan.blocks, kFirstThreads, params.plan.shared_bytes, 1, false, stream, /*early=*/true},
                       params);
  };
  const auto with_out_blocks = [&]<int... kOutBlocks>() {
    (if_planned.template operator()<kOutBlocks, 1>(), ...);
    (if_planned.template operator()<kOutBlocks, 2>(), ...);
  };
  with_out_blocks.template operator()<1, 2>();
  if (error) return error;
  return launch(add_first_layer_gradient<kBFloat16>,
                {int64_t(params.out_channels) * params.plan.depth_blocks, kFirstAddThreads, kFirstAddThreads * 16, 1,
                 false, stream, /*early=*/true},
                params);
}

}  // namespace fused_rnn::cuda
