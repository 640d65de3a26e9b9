// What only GPUs of compute capability 9.0 have, behind small functions: copies of boxes of a tensor between global and
// shared memory (TMA), barriers in shared memory that count bytes (mbarrier), and matrix instructions of four warps
// that read both operands from shared memory (wgmma). tests/cuda_on_host/hopper_on_host.h implements each for the CPU.

#pragma once

#include <cuda.h>

#include "cuda/kit/platform.cuh"
#include "cuda/kit/swizzle.h"

namespace fused_rnn::cuda {

// How a matrix instruction finds an operand in shared memory: rows of 64 half-precision values, 8 rows a group.
// `address` is that of its first row, which may be any row: the order of the chunks depends on their final addresses
// alone. If the values of a row are those of one row of the matrix and successive depths ("depth first"), group_bytes
// is the distance between groups of 8 rows of the matrix, and column_bytes is not used. If they are those of one depth
// and successive rows of the matrix, group_bytes is the distance between groups of 8 depths, and column_bytes that
// between the first 64 rows of the matrix and the next.
constexpr uint64_t matrix_descriptor(uint32_t address, int group_bytes, int column_bytes) {
  constexpr uint64_t kSwizzle128Bytes = 1;
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(column_bytes >> 4 & 0x3fff) << 16 |
         uint64_t(group_bytes >> 4 & 0x3fff) << 32 | kSwizzle128Bytes << 62;
}

// Whether multiply_matrices, or multiply_from_registers, has an instruction of so many columns.
constexpr bool has_instruction(int columns) {
  return columns == 8 || columns == 64 || columns == 112 || columns == 128 || columns == 192 || columns == 224 ||
         columns == 256;
}
constexpr bool has_instruction_from_registers(int columns) {
  return columns == 16 || columns == 32 || columns == 48 || columns == 64 || columns == 96 || columns == 128;
}

// A tensor in global memory and the box of it that one copy moves; see make_tensor_map.
struct TensorMap {
  CUtensorMap map;
};

// Describes a tensor of two-byte values with `rank` dimensions, the first of which is dense: their sizes, the strides
// of the others in bytes (multiples of 16), and the sizes of the box, 64 values in the first dimension. Copies fill
// with zeros, or leave out, what is outside the tensor. Returns null, or what is wrong.
const char* make_tensor_map(TensorMap& map, const void* data, bool bfloat16, int rank, const int64_t* sizes,
                            const int64_t* strides, const int* box);

using Barrier = uint64_t;

}  // namespace fused_rnn::cuda

#ifdef FUSED_RNN_CUDA_ON_HOST
#include "hopper_on_host.h"
#else

namespace fused_rnn::cuda {

// Whether the code that is compiled may use these instructions; kernels that need them have no body elsewhere.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasHopper = false;
#else
constexpr bool kHasHopper = true;
#endif

// Prepares a barrier for phases that end when `arrivals` threads have arrived and all expected bytes have been copied.
// One thread prepares them; barriers_ready, and then block_barrier, let all others and the copies see them.
FUSED_RNN_DEVICE void barrier_prepare(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
FUSED_RNN_DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

FUSED_RNN_DEVICE void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and adds `bytes` to what the phase waits for.
FUSED_RNN_DEVICE void barrier_arrive_and_expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits for the end of the barrier's phase of this parity: 0 for the first phase, 1 for the second, 0 for the third.
FUSED_RNN_DEVICE void barrier_wait(Barrier* barrier, int parity) {
  for (int tries = 0;; ++tries) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    if (done) return;
    if (tries > 1 << 26) trap_without_call("a barrier was not reached");
  }
}

// Copies the box at the given place from global to shared memory; its bytes count at the barrier. The first coordinate
// must be a multiple of 8, as all addresses of boxes must be of 16 bytes; the others may be anything.
FUSED_RNN_DEVICE void load_box(void* to, const TensorMap& from, Barrier* barrier, int x0, int x1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(shared_address(to)),
      "l"(&from), "r"(shared_address(barrier)), "r"(x0), "r"(x1)
      : "memory");
}
FUSED_RNN_DEVICE void load_box(void* to, const TensorMap& from, Barrier* barrier, int x0, int x1, int x2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&from), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2)
      : "memory");
}
FUSED_RNN_DEVICE void load_box(void* to, const TensorMap& from, Barrier* barrier, int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&from), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}

// Copies a box from shared to global memory. Threads that wrote it called shared_written first. The thread that started
// copies ends the batch with boxes_started; boxes_read waits until all but the last kBatches have been read from shared
// memory.
FUSED_RNN_DEVICE void store_box(const TensorMap& to, const void* from, int x0, int x1, int x2, int x3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&to),
               "r"(shared_address(from)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}
FUSED_RNN_DEVICE void boxes_started() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int kBatches>
FUSED_RNN_DEVICE void boxes_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kBatches) : "memory");
}
// Stores to shared memory what copies or matrix instructions are to read, after shared_written.
template <typename V>
FUSED_RNN_DEVICE void store_operand(V* to, const V& value) {
  *to = value;
}
// Makes what this thread stored in shared memory visible to the copies and the matrix instructions.
FUSED_RNN_DEVICE void shared_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of `threads` threads of the block, one of 15 that are numbered from 1.
FUSED_RNN_DEVICE void group_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// The number of this thread's warp in the block, which the compiler then knows to be the same in all threads of the
// warp: it must not take a branch that depends on it for one where matrix instructions may diverge.
FUSED_RNN_DEVICE int warp_number() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0); }

// Gives registers back, or takes more of those that others gave back: called by all threads of four warps, the first of
// which has a number divisible by four; for a multiple of 8.
template <int kCount>
FUSED_RNN_DEVICE void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
FUSED_RNN_DEVICE void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Stores two 8 x 8 matrices of half precision, transposed: lane l holds in word m the elements [l / 4][2 * (l % 4)] and
// [l / 4][2 * (l % 4) + 1] of matrix m; column c of matrix m goes to the 16 bytes at the address of lane 8 * m + c.
FUSED_RNN_DEVICE void store_transposed(void* row, uint32_t m0, uint32_t m1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)), "r"(m0),
               "r"(m1)
               : "memory");
}

// Before the first matrix instruction, and after other code touched its sums; after the last of a batch; and until all
// batches but the last kBatches are done. Only then may sums be read, and operands overwritten.
FUSED_RNN_DEVICE void matrices_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FUSED_RNN_DEVICE void matrices_started() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kBatches>
FUSED_RNN_DEVICE void matrices_done() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kBatches) : "memory");
}

// Keeps the compiler from reading sums before what is called before this is done: matrices_done alone does not tell it
// that the sums change there.
template <int kCount>
FUSED_RNN_DEVICE void sums_change(float (&sum)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

#define FUSED_RNN_SUMS(i)                                                                                 \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), \
      "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define FUSED_RNN_SUMS_32(i) FUSED_RNN_SUMS(i), FUSED_RNN_SUMS(i + 8), FUSED_RNN_SUMS(i + 16), FUSED_RNN_SUMS(i + 24)
#define FUSED_RNN_NAMES_TO_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FUSED_RNN_NAMES_0 FUSED_RNN_NAMES_TO_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FUSED_RNN_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define FUSED_RNN_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define FUSED_RNN_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define FUSED_RNN_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define FUSED_RNN_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define FUSED_RNN_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define FUSED_RNN_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FUSED_RNN_NAMES_96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define FUSED_RNN_NAMES_112 \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FUSED_RNN_NAMES_TO_32 FUSED_RNN_NAMES_0 FUSED_RNN_NAMES_16 FUSED_RNN_NAMES_24
#define FUSED_RNN_NAMES_TO_64 FUSED_RNN_NAMES_TO_32 FUSED_RNN_NAMES_32 FUSED_RNN_NAMES_48 FUSED_RNN_NAMES_56

// wgmma of `columns` columns: what its sums are called, those operands, and the names of the operands that follow: both
// descriptors, whether to add to the sums, and whether left and right are depth first.
#define FUSED_RNN_MATRICES(columns, names, left_name, right_name, add_name, left_order, right_order, ...)   \
  if constexpr (kColumns == columns) {                                                                      \
    if constexpr (kBFloat16)                                                                                \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name                                             \
                   ", 0;\n"                                                                                 \
                   "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" names "}, " left_name \
                   ", " right_name ", p, 1, 1, " left_order ", " right_order ";\n}"                         \
                   : __VA_ARGS__                                                                            \
                   : "l"(left), "l"(right), "r"(static_cast<int>(add)), "n"(kLeftDepthFirst ? 0 : 1),       \
                     "n"(kRightDepthFirst ? 0 : 1));                                                        \
    else                                                                                                    \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name                                             \
                   ", 0;\n"                                                                                 \
                   "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" names "}, " left_name   \
                   ", " right_name ", p, 1, 1, " left_order ", " right_order ";\n}"                         \
                   : __VA_ARGS__                                                                            \
                   : "l"(left), "l"(right), "r"(static_cast<int>(add)), "n"(kLeftDepthFirst ? 0 : 1),       \
                     "n"(kRightDepthFirst ? 0 : 1));                                                        \
  }

// sum[64 x kColumns] (+)= left[64 x 16] right[16 x kColumns], started by the four warps of a warpgroup together and
// done when matrices_done says so. Thread t holds in sum[4 * j + 2 * h + e] the element of row 16 * (t / 32) + 8 * h +
// t % 32 / 4 and column 8 * j + 2 * (t % 4) + e.
template <bool kBFloat16, int kColumns, bool kLeftDepthFirst, bool kRightDepthFirst>
FUSED_RNN_DEVICE void multiply_matrices(float (&sum)[kColumns / 2], uint64_t left, uint64_t right, bool add) {
  static_assert(has_instruction(kColumns));
  FUSED_RNN_MATRICES(8, "%0, %1, %2, %3", "%4", "%5", "%6", "%7", "%8", "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]),
                     "+f"(sum[3]))
  FUSED_RNN_MATRICES(64, FUSED_RNN_NAMES_TO_32, "%32", "%33", "%34", "%35", "%36", FUSED_RNN_SUMS_32(0))
  FUSED_RNN_MATRICES(112, FUSED_RNN_NAMES_TO_32 FUSED_RNN_NAMES_32 FUSED_RNN_NAMES_48, "%56", "%57", "%58", "%59",
                     "%60", FUSED_RNN_SUMS_32(0), FUSED_RNN_SUMS(32), FUSED_RNN_SUMS(40), FUSED_RNN_SUMS(48))
  FUSED_RNN_MATRICES(128, FUSED_RNN_NAMES_TO_64, "%64", "%65", "%66", "%67", "%68", FUSED_RNN_SUMS_32(0),
                     FUSED_RNN_SUMS_32(32))
  FUSED_RNN_MATRICES(192, FUSED_RNN_NAMES_TO_64 FUSED_RNN_NAMES_64 FUSED_RNN_NAMES_80, "%96", "%97", "%98", "%99",
                     "%100", FUSED_RNN_SUMS_32(0), FUSED_RNN_SUMS_32(32), FUSED_RNN_SUMS_32(64))
  FUSED_RNN_MATRICES(224, FUSED_RNN_NAMES_TO_64 FUSED_RNN_NAMES_64 FUSED_RNN_NAMES_80 FUSED_RNN_NAMES_96, "%112",
                     "%113", "%114", "%115", "%116", FUSED_RNN_SUMS_32(0), FUSED_RNN_SUMS_32(32), FUSED_RNN_SUMS_32(64),
                     FUSED_RNN_SUMS(96), FUSED_RNN_SUMS(104))
  FUSED_RNN_MATRICES(256,
                     FUSED_RNN_NAMES_TO_64 FUSED_RNN_NAMES_64 FUSED_RNN_NAMES_80 FUSED_RNN_NAMES_96 FUSED_RNN_NAMES_112,
                     "%128", "%129", "%130", "%131", "%132", FUSED_RNN_SUMS_32(0), FUSED_RNN_SUMS_32(32),
                     FUSED_RNN_SUMS_32(64), FUSED_RNN_SUMS_32(96))
}

// The same with the left matrix in registers, and the right one depth first.
#define FUSED_RNN_FROM_REGISTERS(columns, names, left_names, right_name, add_name, ...)                       \
  if constexpr (kColumns == columns) {                                                                        \
    if constexpr (kBFloat16)                                                                                  \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name                                               \
                   ", 0;\n"                                                                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" names "}, {" left_names \
                   "}, " right_name ", p, 1, 1, 0;\n}"                                                        \
                   : __VA_ARGS__                                                                              \
                   : "r"(left0), "r"(left1), "r"(left2), "r"(left3), "l"(right), "r"(static_cast<int>(add))); \
    else                                                                                                      \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name                                               \
                   ", 0;\n"                                                                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" names "}, {" left_names   \
                   "}, " right_name ", p, 1, 1, 0;\n}"                                                        \
                   : __VA_ARGS__                                                                              \
                   : "r"(left0), "r"(left1), "r"(left2), "r"(left3), "l"(right), "r"(static_cast<int>(add))); \
  }

// The same, with the left matrix in registers, which stay as they are until matrices_done, and the right one depth
// first. Thread t holds in the word left<2 * i + h> the elements of row 16 * (t / 32) + 8 * h + t % 32 / 4 and of the
// depths 8 * i + 2 * (t % 4) and the next.
template <bool kBFloat16, int kColumns>
FUSED_RNN_DEVICE void multiply_from_registers(float (&sum)[kColumns / 2], const uint32_t& left0, const uint32_t& left1,
                                              const uint32_t& left2, const uint32_t& left3, uint64_t right, bool add) {
  static_assert(has_instruction_from_registers(kColumns));
  FUSED_RNN_FROM_REGISTERS(16, FUSED_RNN_NAMES_TO_8, "%8, %9, %10, %11", "%12", "%13", FUSED_RNN_SUMS(0))
  FUSED_RNN_FROM_REGISTERS(32, FUSED_RNN_NAMES_0, "%16, %17, %18, %19", "%20", "%21", FUSED_RNN_SUMS(0),
                           FUSED_RNN_SUMS(8))
  FUSED_RNN_FROM_REGISTERS(48, FUSED_RNN_NAMES_0 FUSED_RNN_NAMES_16, "%24, %25, %26, %27", "%28", "%29",
                           FUSED_RNN_SUMS(0), FUSED_RNN_SUMS(8), FUSED_RNN_SUMS(16))
  FUSED_RNN_FROM_REGISTERS(64, FUSED_RNN_NAMES_TO_32, "%32, %33, %34, %35", "%36", "%37", FUSED_RNN_SUMS_32(0))
  FUSED_RNN_FROM_REGISTERS(96, FUSED_RNN_NAMES_TO_32 FUSED_RNN_NAMES_32, "%48, %49, %50, %51", "%52", "%53",
                           FUSED_RNN_SUMS_32(0), FUSED_RNN_SUMS(32), FUSED_RNN_SUMS(40))
  FUSED_RNN_FROM_REGISTERS(128, FUSED_RNN_NAMES_TO_64, "%64, %65, %66, %67", "%68", "%69", FUSED_RNN_SUMS_32(0),
                           FUSED_RNN_SUMS_32(32))
}

}  // namespace fused_rnn::cuda

#endif

namespace fused_rnn::cuda {

// The part of shared memory from `memory` on in which the order of the chunks starts as in a row of a multiple of 8.
FUSED_RNN_DEVICE char* aligned_for_boxes(char* memory) {
  return memory + (kAlignment - shared_address(memory) % kAlignment) % kAlignment;
}

// The 16-byte chunk of a row, both counted from `boxes`, which is aligned for boxes.
FUSED_RNN_DEVICE char* chunk_at(char* boxes, int row, int chunk) {
  return boxes + row * kRowBytes + (chunk ^ row % 8) * 16;
}

}  // namespace fused_rnn::cuda
