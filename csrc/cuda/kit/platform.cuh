// All that the kernels need of the GPU, behind small functions: barriers, memory that several thread blocks share,
// matrix instructions. tests/cuda_on_host/cuda_on_host.h implements each of them for the CPU, so that the tests run the
// same kernels without a GPU.

#pragma once

#include <cstdint>

#ifdef FUSED_RNN_CUDA_ON_HOST
#include "cuda_on_host.h"
#else

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "cuda/kit/launch.h"

#define FUSED_RNN_DEVICE __device__ __forceinline__
#define FUSED_RNN_KERNEL __global__
#define FUSED_RNN_PARAM __grid_constant__
#define FUSED_RNN_THREADS(count) __launch_bounds__(count, 1)
#define FUSED_RNN_THREADS_AND_BLOCKS(count, blocks) __launch_bounds__(count, blocks)

namespace fused_rnn::cuda {

// Whether the architecture that is compiled for has clusters of thread blocks.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif

// Dynamic shared memory of the block, aligned to 16 bytes.
FUSED_RNN_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// Ends the kernel with an error: the driver prints where and why, and every later call of CUDA in this process fails.
FUSED_RNN_DEVICE void trap(const char* why) { __assert_fail(why, "fused_rnn", 0, "a CUDA kernel"); }

// The same without a message. A function that prints one is called, and the compiler runs the matrix instructions of
// Hopper one after another in a kernel that calls any.
FUSED_RNN_DEVICE void trap_without_call(const char* /*why*/) { __trap(); }

// Nanoseconds of a clock that all multiprocessors share, and which moves on about every microsecond.
FUSED_RNN_DEVICE uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

FUSED_RNN_DEVICE void block_barrier() { __syncthreads(); }
FUSED_RNN_DEVICE void warp_barrier() { __syncwarp(); }

// The address in shared memory that instructions take.
FUSED_RNN_DEVICE uint32_t shared_address(const void* in_shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(in_shared));
}

// Starts a copy of 16 bytes from global to shared memory (cp.async), both aligned to 16 bytes. If the chunk does not
// exist, nothing is read, whatever the address is, and zeros are written. Chunks that other copies of the block will
// read again soon may be kept in the first-level cache. copies_started ends a batch of this thread's copies, which may
// be empty, and copies_done waits until all of its batches but the last kBatches are there; a barrier then lets other
// threads see them.
template <bool kKeep>
FUSED_RNN_DEVICE void copy_chunk(void* to, const void* from, bool exists) {
  const int bytes = exists ? 16 : 0;
  if constexpr (kKeep)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
FUSED_RNN_DEVICE void copies_started() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kBatches>
FUSED_RNN_DEVICE void copies_done() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kBatches) : "memory");
}

// Loads four matrices of 8 rows of 16 bytes from shared memory: row r of matrix m is at the address of lane 8 * m + r.
// Lane l gets, in word m, the 4 bytes from byte 4 * (l % 4) on of row l / 4 of matrix m. If transposed, the matrices
// are of 8 x 8 two-byte values, and it gets the values of rows 2 * (l % 4) and the next in column l / 4.
template <bool kTransposed>
FUSED_RNN_DEVICE uint4 load_matrices(const void* row) {
  uint4 words;
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "r"(shared_address(row))
                 : "memory");
  return words;
}

// Loads 16 bytes of global memory into which other blocks may be storing at the same time. Each of the four words is
// loaded whole; their order is not defined.
FUSED_RNN_DEVICE uint4 load_fresh(const void* from) {
  uint4 value;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from)
               : "memory");
  return value;
}
// The same from this block's shared memory, into which other blocks of the cluster may be storing.
FUSED_RNN_DEVICE uint4 load_fresh_shared(const void* from) {
  uint4 value = {0, 0, 0, 0};
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.cluster.shared::cta.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from)))
               : "memory");
#endif
  return value;
}

// Stores one word, or two, to global memory from which other blocks may be loading. Each word is stored whole.
FUSED_RNN_DEVICE void store_fresh(void* to, uint32_t word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
FUSED_RNN_DEVICE void store_fresh(void* to, uint2 words) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(words.x), "r"(words.y) : "memory");
}

// The address in the cluster of what is at `mine` in this block's shared memory, but in that of the block `rank`; and
// stores to there, which are like store_fresh.
FUSED_RNN_DEVICE uint32_t shared_of(const void* mine, int rank) {
  uint32_t theirs = 0;
#if __CUDA_ARCH__ >= 900
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(mine));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"(address), "r"(rank));
#endif
  return theirs;
}
FUSED_RNN_DEVICE void store_shared_of(void* mine, int rank, uint32_t word) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.relaxed.cluster.shared::cluster.u32 [%0], %1;" ::"r"(shared_of(mine, rank)), "r"(word) : "memory");
#endif
}
FUSED_RNN_DEVICE void store_shared_of(void* mine, int rank, uint2 words) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.relaxed.cluster.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(shared_of(mine, rank)), "r"(words.x),
               "r"(words.y)
               : "memory");
#endif
}

// For kernels that are launched early: all their blocks call wait_for_last_kernel before they touch global memory,
// which the kernels before may still write or read. Blocks of the next kernel may start, if it is launched early, too,
// when all blocks have called let_next_kernel_start or ended, and where there is room for them.
FUSED_RNN_DEVICE void wait_for_last_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
FUSED_RNN_DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Fences for stores between blocks of a cluster. A block that has loaded with load_fresh_shared() what another one
// stored with store_shared_of(), and then calls acquire_from_cluster(), comes after all that the other one did in its
// own shared memory before its thread called release_to_cluster(), also by the block's other threads before a barrier.
// They order accesses of shared memory alone and so need not wait for stores to global memory, for which
// fence.acq_rel.cluster does.
FUSED_RNN_DEVICE void release_to_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
#endif
}
FUSED_RNN_DEVICE void acquire_from_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#endif
}

// Called in a loop that waits for other blocks. A GPU needs nothing here; on the CPU another thread runs.
FUSED_RNN_DEVICE void pause() {}

// A barrier of all threads of a cluster: what any of them stored before it is seen by all after it.
FUSED_RNN_DEVICE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#endif
}

// sum[16 x 8] += a[16 x 16] b[16 x 8] for half precision, a[16 x 8] b[8 x 8] for tf32. Each lane holds the elements
// that PTX assigns to it (mma.m16n8k16 and m16n8k8).
FUSED_RNN_DEVICE void mma_bfloat16(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
FUSED_RNN_DEVICE void mma_float16(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
FUSED_RNN_DEVICE void mma_tf32(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Rounds to the nearest tf32: 10 bits of mantissa.
FUSED_RNN_DEVICE uint32_t round_to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// How a kernel is started.
struct Launch {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
  int cluster;         // blocks of a cluster; 1 for none
  bool cooperative;    // whether all blocks must run at once
  void* stream;        // cudaStream_t
  bool early = false;  // whether blocks may start while the last kernel of the stream ends; see wait_for_last_kernel
};

// Starts a kernel; returns null, kDoesNotFit, or what CUDA says is wrong.
template <typename Params>
const char* launch(void (*kernel)(Params), const Launch& how, const Params& params) {
  if (how.shared_bytes > 48 * 1024 || how.cluster > 8)
    if (const char* error = prepare_kernel(reinterpret_cast<const void*>(kernel), how.cluster > 8)) return error;
  cudaLaunchAttribute attributes[3];
  unsigned int count = 0;
  if (how.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(how.cluster);
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (how.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count].val.cooperative = 1;
    ++count;
  }
  if (how.early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = static_cast<size_t>(how.shared_bytes);
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = attributes;
  config.numAttrs = count;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, params);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // this launch's error alone; the next call starts without it
  const bool too_large = error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorInvalidClusterSize ||
                         error == cudaErrorLaunchOutOfResources;
  return too_large ? kDoesNotFit : cudaGetErrorString(error);
}

// Sets every byte of device memory to `value`, on a stream; returns null, or what CUDA says is wrong.
inline const char* fill_bytes(void* memory, int value, int64_t bytes, void* stream) {
  const cudaError_t error =
      cudaMemsetAsync(memory, value, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fused_rnn::cuda

#endif
