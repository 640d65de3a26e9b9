// All that csrc/cuda/kit/hopper.cuh offers, for the CPU. What a GPU does beside its threads happens here at once or as
// late as it may, as the schedule decides: the bytes of a copy arrive when no thread can go on without them, a box is
// read when its thread waits for that, and operands when the sums are waited for. So a kernel that does not wait reads
// NaN, or what has been overwritten. See boxes.cpp and warpgroup.cpp.

#pragma once

#include <array>
#include <initializer_list>

#include "cuda_on_host.h"

namespace fused_rnn::cuda {

#ifdef FUSED_RNN_WITHOUT_HOPPER
constexpr bool kHasHopper = false;
#else
constexpr bool kHasHopper = true;
#endif

void barrier_prepare(Barrier* barrier, int arrivals);
void barriers_ready();
void barrier_arrive(Barrier* barrier);
void barrier_arrive_and_expect(Barrier* barrier, int bytes);
void barrier_wait(Barrier* barrier, int parity);

namespace host {

void load_box(void* to, const TensorMap& from, Barrier* barrier, std::initializer_list<int> at);
void store_box(const TensorMap& to, const void* from, std::initializer_list<int> at);
void wait_for_boxes(int batches);

// An instruction of a warpgroup: sum[64 x columns] (+)= left[64 x 16] right[16 x columns]. The left matrix is in shared
// memory, or in registers, which each lane has its own of.
struct Product {
  bool bfloat16;
  int columns;
  bool left_in_registers, left_depth_first, right_depth_first;
  uint64_t left, right;
  bool add;

  bool operator==(const Product&) const = default;
};
constexpr int kLeftWords = 4;
using LeftWords = std::array<const uint32_t*, kLeftWords>;  // of a lane
void start_product(const Product& product, float* sums, const LeftWords& left = {});
void wait_for_products(int batches);

void change_registers(bool more, int count);

// Notes that this thread stored a value in shared memory; and checks that copies and matrix instructions may read
// there: that threads which stored called shared_written afterwards. Nothing sees stores by other ways than
// store_operand and store_transposed.
void note_store(const void* to);
void check_seen(uint32_t address, int64_t bytes);

}  // namespace host

template <typename... Coordinates>
void load_box(void* to, const TensorMap& from, Barrier* barrier, Coordinates... at) {
  host::load_box(to, from, barrier, {at...});
}

template <typename... Coordinates>
void store_box(const TensorMap& to, const void* from, Coordinates... at) {
  host::store_box(to, from, {at...});
}
void boxes_started();
template <int kBatches>
void boxes_read() {
  host::wait_for_boxes(kBatches);
}
void shared_written();

template <typename V>
void store_operand(V* to, const V& value) {
  if (host::shared_address(to) % sizeof(V) != 0) host::fail("store_operand: the address is not aligned");
  *to = value;
  host::note_store(to);
}

inline int warp_number() { return static_cast<int>(threadIdx.x / host::kWarp); }
inline void group_barrier(int number, int threads) { host::meet_group("group_barrier", number, threads); }

template <int kCount>
void fewer_registers() {
  host::change_registers(false, kCount);
}
template <int kCount>
void more_registers() {
  host::change_registers(true, kCount);
}

void store_transposed(void* row, uint32_t m0, uint32_t m1);

void matrices_begin();
void matrices_started();
template <int kBatches>
void matrices_done() {
  host::wait_for_products(kBatches);
}

template <int kCount>
void sums_change(float (&)[kCount]) {}

template <bool kBFloat16, int kColumns, bool kLeftDepthFirst, bool kRightDepthFirst>
void multiply_matrices(float (&sum)[kColumns / 2], uint64_t left, uint64_t right, bool add) {
  static_assert(has_instruction(kColumns));
  host::start_product({kBFloat16, kColumns, false, kLeftDepthFirst, kRightDepthFirst, left, right, add}, sum);
}

template <bool kBFloat16, int kColumns>
void multiply_from_registers(float (&sum)[kColumns / 2], const uint32_t& left0, const uint32_t& left1,
                             const uint32_t& left2, const uint32_t& left3, uint64_t right, bool add) {
  static_assert(has_instruction_from_registers(kColumns));
  host::start_product({kBFloat16, kColumns, true, true, true, 0, right, add}, sum, {&left0, &left1, &left2, &left3});
}

}  // namespace fused_rnn::cuda
