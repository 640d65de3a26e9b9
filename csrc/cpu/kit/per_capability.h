// Each kernel is compiled once per instruction set, into a namespace named after it (as CPU_CAPABILITY names it).

#pragma once

#ifdef FUSED_RNN_HAS_AVX2
#define FUSED_RNN_IF_AVX2(...) __VA_ARGS__
#else
#define FUSED_RNN_IF_AVX2(...)
#endif

#ifdef FUSED_RNN_HAS_AVX512
#define FUSED_RNN_IF_AVX512(...) __VA_ARGS__
#else
#define FUSED_RNN_IF_AVX512(...)
#endif

// Declares functions once for each instruction set that is built.
#define FUSED_RNN_PER_CAPABILITY(...)            \
  namespace DEFAULT {                            \
  __VA_ARGS__                                    \
  }                                              \
  FUSED_RNN_IF_AVX2(namespace AVX2{__VA_ARGS__}) \
  FUSED_RNN_IF_AVX512(namespace AVX512{__VA_ARGS__})
