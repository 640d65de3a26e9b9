// Each kernel is compiled once for each instruction set, into a namespace of that name: DEFAULT, AVX2 or AVX512, which
// the build passes as the macro CPU_CAPABILITY.

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

// Declares functions in the namespace of each instruction set that is built.
#define FUSED_RNN_PER_CAPABILITY(...)            \
  namespace DEFAULT {                            \
  __VA_ARGS__                                    \
  }                                              \
  FUSED_RNN_IF_AVX2(namespace AVX2{__VA_ARGS__}) \
  FUSED_RNN_IF_AVX512(namespace AVX512{__VA_ARGS__})
