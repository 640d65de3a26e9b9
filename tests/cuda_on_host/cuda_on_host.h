// All that csrc/cuda/kit/platform.cuh offers, for the CPU: with it g++ compiles the kernels, and launch() runs them.

#pragma once

#include <vector_types.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/kit/launch.h"
#include "fibers.h"

#define FUSED_RNN_DEVICE inline
#define FUSED_RNN_KERNEL
#define FUSED_RNN_PARAM
#define FUSED_RNN_THREADS(count)
#define FUSED_RNN_THREADS_AND_BLOCKS(count, blocks)

namespace fused_rnn::cuda {

#ifdef FUSED_RNN_WITHOUT_CLUSTERS
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif

inline char* shared_memory() { return host::shared_memory(); }
inline void trap(const char* why) { host::fail(why); }
inline void trap_without_call(const char* why) { host::fail(why); }
inline void block_barrier() { host::meet_block("block_barrier"); }
inline void warp_barrier() { host::meet_warp("warp_barrier"); }
inline void cluster_barrier() { host::meet_cluster("cluster_barrier"); }
// Kernels run one after another here, but whether a thread has called this is checked.
inline void wait_for_last_kernel() { host::wait_for_last_kernel(); }
inline void let_next_kernel_start() {}
inline void pause() { host::pause(); }
inline uint64_t nanoseconds() { return host::nanoseconds(); }
inline void release_to_cluster() { std::atomic_thread_fence(std::memory_order_release); }
inline void acquire_from_cluster() { std::atomic_thread_fence(std::memory_order_acquire); }

inline uint4 load_fresh(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(uint4) != 0) host::fail("load_fresh: the address is not aligned");
  const auto load = [&](int i) { return __atomic_load_n(static_cast<const uint32_t*>(from) + i, __ATOMIC_RELAXED); };
  return {load(0), load(1), load(2), load(3)};
}
inline uint4 load_fresh_shared(const void* from) { return load_fresh(host::shared_of(from, host::this_rank())); }

inline uint32_t shared_address(const void* in_shared) { return host::shared_address(in_shared); }

// See copies.cpp.
namespace host {
void start_copy(void* to, const void* from, bool exists);
void wait_for_copies(int batches);
uint4 load_matrices(const void* row, bool transposed);
}  // namespace host
template <bool kKeep>
void copy_chunk(void* to, const void* from, bool exists) {
  host::start_copy(to, from, exists);
}
void copies_started();
template <int kBatches>
void copies_done() {
  host::wait_for_copies(kBatches);
}
template <bool kTransposed>
uint4 load_matrices(const void* row) {
  return host::load_matrices(row, kTransposed);
}

inline void store_fresh(void* to, uint32_t word) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(word) != 0) host::fail("store_fresh: the address is not aligned");
  __atomic_store_n(static_cast<uint32_t*>(to), word, __ATOMIC_RELAXED);
  host::note_progress();
}
inline void store_fresh(void* to, uint2 words) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(words) != 0) host::fail("store_fresh: the address is not aligned");
  store_fresh(to, words.x);
  store_fresh(static_cast<uint32_t*>(to) + 1, words.y);
}
inline void store_shared_of(void* mine, int rank, uint32_t word) { store_fresh(host::shared_of(mine, rank), word); }
inline void store_shared_of(void* mine, int rank, uint2 words) { store_fresh(host::shared_of(mine, rank), words); }

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
  bool early = false;
};

template <typename Params>
const char* launch(void (*kernel)(Params), const Launch& how, const Params& params) {
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  };
  if ((how.cooperative && how.blocks > host::room()) || how.cluster > host::room()) return kDoesNotFit;
  const Call call = {kernel, params};
  return host::run({[](const void* of) { static_cast<const Call*>(of)->kernel(static_cast<const Call*>(of)->params); },
                    &call, how.blocks, how.threads, how.shared_bytes, how.cluster, how.cooperative, how.early});
}

inline const char* fill_bytes(void* memory, int value, int64_t bytes, void* /*stream*/) {
  std::memset(memory, value, static_cast<size_t>(bytes));
  return nullptr;
}

}  // namespace fused_rnn::cuda
