// Chooses, at run time, the instruction set whose kernels are called.

#pragma once

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <new>

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

// Returns the instruction set for kernels that multiply bytes: that of all kernels, or AVX2 on a processor that has
// AVX-512 without AVX512_VNNI.
inline Capability capability_for_bytes() {
#if defined(__x86_64__)
  if (capability() == Capability::kAVX512 && !__builtin_cpu_supports("avx512vnni")) return Capability::kAVX2;
#endif
  return capability();
}

// Calls cpu::<instruction set>::name(...), with the instruction set of this machine or with a given one. If memory for
// temporary arrays cannot be allocated, raises the exception that torch raises for tensors.
#define FUSED_RNN_CPU_CALL(name, ...) FUSED_RNN_CPU_CALL_FOR(::fused_rnn::ops::capability(), name, __VA_ARGS__)
#define FUSED_RNN_CPU_CALL_FOR(capability, name, ...)                                                         \
  [&] {                                                                                                       \
    try {                                                                                                     \
      switch (capability) {                                                                                   \
        FUSED_RNN_IF_AVX512(                                                                                  \
            case ::fused_rnn::ops::Capability::kAVX512 : return ::fused_rnn::cpu::AVX512::name(__VA_ARGS__);) \
        FUSED_RNN_IF_AVX2(                                                                                    \
            case ::fused_rnn::ops::Capability::kAVX2 : return ::fused_rnn::cpu::AVX2::name(__VA_ARGS__);)     \
        default:                                                                                              \
          return ::fused_rnn::cpu::DEFAULT::name(__VA_ARGS__);                                                \
      }                                                                                                       \
    } catch (const std::bad_alloc&) {                                                                         \
      TORCH_CHECK(false, "can't allocate memory for the temporary arrays of " #name);                         \
    }                                                                                                         \
  }()

}  // namespace fused_rnn::ops
