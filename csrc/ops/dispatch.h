// Chooses, at run time, the instruction set whose kernels are called.

#pragma once

#include <ATen/Version.h>

#include "cpu/kit/per_capability.h"

namespace fused_rnn::ops {

enum class Capability { kDefault, kAVX2, kAVX512 };

// Returns the best instruction set of this machine, or a lower one that the environment variable ATEN_CPU_CAPABILITY
// sets, as in torch.
inline Capability capability() {
  static const Capability chosen = [] {
    const std::string name = at::get_cpu_capability();
    if (name == "AVX512") return Capability::kAVX512;
    return name == "AVX2" ? Capability::kAVX2 : Capability::kDefault;
  }();
  return chosen;
}

// Returns whether kernels may multiply pairs of bfloat16 numbers: whether the processor has AVX512_BF16, and AVX-512 is
// the chosen instruction set.
inline bool multiplies_pairs() {
#if defined(FUSED_RNN_PAIRS_STAND_IN)
  return true;
#elif defined(__x86_64__)
  return capability() == Capability::kAVX512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Calls cpu::<instruction set>::name(...).
#define FUSED_RNN_CPU_CALL(name, ...)                                                                                 \
  [&] {                                                                                                               \
    switch (::fused_rnn::ops::capability()) {                                                                         \
      FUSED_RNN_IF_AVX512(                                                                                            \
          case ::fused_rnn::ops::Capability::kAVX512 : return ::fused_rnn::cpu::AVX512::name(__VA_ARGS__);)           \
      FUSED_RNN_IF_AVX2(case ::fused_rnn::ops::Capability::kAVX2 : return ::fused_rnn::cpu::AVX2::name(__VA_ARGS__);) \
      default:                                                                                                        \
        return ::fused_rnn::cpu::DEFAULT::name(__VA_ARGS__);                                                          \
    }                                                                                                                 \
  }()

}  // namespace fused_rnn::ops
