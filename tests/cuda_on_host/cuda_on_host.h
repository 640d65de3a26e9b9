// The twin of all that csrc/cuda/platform.cuh offers: with it g++ compiles the bodies of the kernels for a CPU, and
// launch() runs them there.

#pragma once

#include <vector_types.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define FUSED_RNN_DEVICE inline
#define FUSED_RNN_KERNEL
#define FUSED_RNN_PARAM
#define FUSED_RNN_THREADS(count)

namespace fused_rnn::cuda {

inline char* shared_memory() { return host::shared_memory(); }
inline void block_barrier() { host::meet_block("block_barrier"); }
inline void team_barrier(int id, int threads) { host::meet_team("team_barrier", id, threads); }
inline void warp_barrier() { host::meet_warp("warp_barrier"); }
inline void cluster_barrier() { host::meet_cluster("cluster_barrier"); }
inline void pause() { host::pause(); }

template <typename T>
T* shared_of(T* mine, int rank) {
  return static_cast<T*>(host::shared_of(mine, rank));
}

inline uint4 load_fresh(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(uint4) != 0) host::fail("load_fresh: the address is not aligned");
  const auto load = [&](int i) { return __atomic_load_n(static_cast<const uint32_t*>(from) + i, __ATOMIC_RELAXED); };
  return {load(0), load(1), load(2), load(3)};
}
inline void store_fresh(uint16_t* to, uint16_t bits) {
  __atomic_store_n(to, bits, __ATOMIC_RELAXED);
  host::note_progress();
}
inline void store_fresh(uint32_t* to, uint32_t bits) {
  __atomic_store_n(to, bits, __ATOMIC_RELAXED);
  host::note_progress();
}

// See matrix.cpp.
void mma_bfloat16(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1);
void mma_float16(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1);
void mma_tf32(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1);
uint32_t round_to_tf32(float value);

// See platform.cuh.
struct Launch {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
  int cluster;
  bool cooperative;
  void* stream;
};

template <typename Params>
const char* launch(void (*kernel)(Params), const Launch& how, const Params& params) {
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  };
  const Call call = {kernel, params};
  return host::run({[](const void* of) { static_cast<const Call*>(of)->kernel(static_cast<const Call*>(of)->params); },
                    &call, how.blocks, how.threads, how.shared_bytes, how.cluster, how.cooperative});
}

inline const char* fill_with_ones(void* memory, int64_t bytes, void* /*stream*/) {
  std::memset(memory, 0xff, static_cast<size_t>(bytes));
  return nullptr;
}

}  // namespace fused_rnn::cuda
