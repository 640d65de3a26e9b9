// Kernels of the tests alone, each of which uses some of csrc/cuda/kit/hopper.cuh, rightly or, if a test asks for it,
// with one mistake; see test_hopper.py.

#include "cuda/kit/hopper.cuh"

namespace fused_rnn::cuda {
namespace {

// A tensor of half precision and the box to copy of it; as test_hopper.py has it, too.
struct Tensor {
  void* data;
  int64_t sizes[5], strides[4];
  int32_t box[5];
  int32_t rank;
  bool bfloat16;

  const char* describe(TensorMap& map) const { return make_tensor_map(map, data, bfloat16, rank, sizes, strides, box); }
  int box_rows() const {
    int rows = 1;
    for (int i = 1; i < rank; ++i) rows *= box[i];
    return rows;
  }
};

// The first address of shared memory, from `from` on, that is a multiple of `multiple`, and `rows` rows further.
char* aligned(char* from, uint32_t multiple, int rows) {
  return from + (multiple - shared_address(from) % multiple) % multiple + rows * kRowBytes;
}

void load(char* to, const TensorMap& map, Barrier* barrier, int rank, const int (&at)[4]) {
  if (rank == 2) load_box(to, map, barrier, at[0], at[1]);
  if (rank == 3) load_box(to, map, barrier, at[0], at[1], at[2]);
  if (rank == 4) load_box(to, map, barrier, at[0], at[1], at[2], at[3]);
}

// Copies a box to shared memory, all bytes of that to `raw`, and the box on to another tensor.
struct CopyParams {
  TensorMap from, to;
  int rank, rows, shift;  // the box begins `shift` rows after a multiple of 1024 bytes
  int from_at[4], to_at[4];
  int bytes;  // that the barrier expects
  bool waits;
  char* raw;
};

constexpr int kCopyThreads = 64;

FUSED_RNN_KERNEL void copy_kernel(const FUSED_RNN_PARAM CopyParams p) {
  auto* const barrier = reinterpret_cast<Barrier*>(shared_memory());
  char* const box = aligned(shared_memory() + sizeof(Barrier), 1024, p.shift);
  if (threadIdx.x == 0) {
    barrier_prepare(barrier, 1);
    barriers_ready();
  }
  block_barrier();
  if (threadIdx.x == 0) {
    barrier_arrive_and_expect(barrier, p.bytes);
    load(box, p.from, barrier, p.rank, p.from_at);
  }
  if (p.waits) barrier_wait(barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < p.rows * kRowBytes; i += kCopyThreads) p.raw[i] = box[i];
  if (threadIdx.x == 32) {
    barrier_wait(barrier, 0);
    store_box(p.to, box, p.to_at[0], p.to_at[1], p.to_at[2], p.to_at[3]);
    boxes_started();
    boxes_read<0>();
  }
}

// Stores tiles of 64 x 8 values, transposed, by one warp each, and copies them as boxes of 8 rows to a tensor, twice
// from the same memory: first the values, and then the values plus one.
struct TransposeParams {
  TensorMap to;
  const uint16_t* values;  // [warps, 2, 8, 64] of bits; row c is column c of what a warp stores
  int mistake;
};

constexpr int kTransposeWarps = 2;

FUSED_RNN_KERNEL void transpose_kernel(const FUSED_RNN_PARAM TransposeParams p) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  char* const box = aligned(shared_memory(), 1024, 8 * warp);
  for (int pass = 0; pass < 2; ++pass) {
    const uint16_t* const values = p.values + (warp * 2 + pass) * 8 * 64;
    // Two matrices of 8 x 8 at a time: 16 rows, which are a quarter of each row of the box.
    for (int quarter = 0; quarter < 4; ++quarter) {
      uint32_t words[2];
      for (int m = 0; m < 2; ++m) {
        const int row = quarter * 16 + m * 8 + lane / 4, column = lane % 4 * 2;
        words[m] = values[column * 64 + row] | uint32_t(values[(column + 1) * 64 + row]) << 16;
      }
      char* const row = box + lane % 8 * kRowBytes;
      const uint32_t chunk = static_cast<uint32_t>(quarter * 2 + lane / 8 % 2) ^ shared_address(row) / kRowBytes % 8;
      store_transposed(row + chunk * 16, words[0], words[1]);
    }
    if (p.mistake != 1) shared_written();
    if (p.mistake != 2) group_barrier(1 + warp, 32);
    if (lane == 0) {
      store_box(p.to, box, 0, 0, pass, warp);
      if (p.mistake != 3) boxes_started();
      if (p.mistake == 4 && pass == 0)
        boxes_read<1>();
      else if (p.mistake != 5 || pass == 0)
        boxes_read<0>();
    }
    group_barrier(1 + warp, 32);
  }
}

// sum[64 x kColumns] = left right, over `steps` depths of 16, from boxes of rows of which each operand has so many.
struct MultiplyParams {
  TensorMap left, right;
  int left_rows, right_rows;    // of a box
  int left_shift, right_shift;  // the row of its box with which an operand begins
  int left_group, right_group;  // rows from one group of 8 to the next
  int steps, mistake;
  float* sums;  // [64, kColumns]
};

template <bool kBFloat16, int kColumns, bool kLeftDepthFirst, bool kRightDepthFirst>
FUSED_RNN_KERNEL void multiply_kernel(const FUSED_RNN_PARAM MultiplyParams p) {
  auto* const barrier = reinterpret_cast<Barrier*>(shared_memory());
  char* const left = aligned(shared_memory() + sizeof(Barrier), 1024, 0);
  char* const right = left + p.left_rows * kRowBytes;
  constexpr int kRightBoxes = kRightDepthFirst ? 1 : (kColumns + 63) / 64;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const auto load_left = [&] {
    barrier_arrive_and_expect(barrier, p.left_rows * kRowBytes);
    load_box(left, p.left, barrier, 0, 0);
  };
  if (thread == 0) {
    barrier_prepare(barrier, 2);
    barriers_ready();
    load_left();
    barrier_arrive_and_expect(barrier, kRightBoxes * p.right_rows * kRowBytes);
    for (int i = 0; i < kRightBoxes; ++i) load_box(right + i * p.right_rows * kRowBytes, p.right, barrier, i * 64, 0);
  }
  block_barrier();
  barrier_wait(barrier, 0);
  float sum[kColumns / 2];
  for (float& each : sum) each = 1;
  if (p.mistake != 1) matrices_begin();
  for (int step = 0; step < p.steps; ++step) {
    // 16 depths further are 32 bytes of a row, or two groups of rows.
    const auto descriptor = [&](char* operand, int shift, int group, bool depth_first, int box_rows) {
      const int bytes = (depth_first ? 32 : 2 * group * kRowBytes) * step;
      return matrix_descriptor(shared_address(operand) + static_cast<uint32_t>(shift * kRowBytes + bytes),
                               group * kRowBytes, box_rows * kRowBytes);
    };
    const bool other = p.mistake == 2 && thread == 77;
    multiply_matrices<kBFloat16, kColumns, kLeftDepthFirst, kRightDepthFirst>(
        sum, descriptor(left, p.left_shift + other, p.left_group, kLeftDepthFirst, p.left_rows),
        descriptor(right, p.right_shift, p.right_group, kRightDepthFirst, p.right_rows), step > 0);
    if (p.mistake == 3) sum[2] += 1;
    if (p.mistake == 4 && step == 0 && thread == 0) {
      load_left();
      barrier_arrive(barrier);
    }
  }
  if (p.mistake != 5) matrices_started();
  if (p.mistake != 6) matrices_done<0>();
  for (int j = 0; j < kColumns / 8; ++j)
    for (int h = 0; h < 2; ++h)
      for (int e = 0; e < 2; ++e)
        p.sums[(16 * (thread / 32) + 8 * h + lane / 4) * kColumns + 8 * j + 2 * (lane % 4) + e] =
            sum[4 * j + 2 * h + e];
  if (p.mistake == 4) barrier_wait(barrier, 1);
}

// One warpgroup hands numbers to another through a ring of buffers; the sum of all is what each got.
struct RingParams {
  int turns;
  int64_t* sums;  // [128]
};

FUSED_RNN_KERNEL void ring_kernel(const FUSED_RNN_PARAM RingParams p) {
  constexpr int kBuffers = 3;
  auto* const full = reinterpret_cast<Barrier*>(shared_memory());
  Barrier* const empty = full + kBuffers;
  auto* const numbers = reinterpret_cast<int32_t*>(empty + kBuffers);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kBuffers; ++i) {
      barrier_prepare(full + i, 1);
      barrier_prepare(empty + i, 128);
    }
    barriers_ready();
  }
  block_barrier();
  int buffer = 0, parity = 0;
  const auto next = [&] {
    if (++buffer == kBuffers) buffer = 0, parity ^= 1;
  };
  if (threadIdx.x < 128) {
    fewer_registers<40>();
    for (int turn = 0; turn < p.turns && threadIdx.x == 0; ++turn, next()) {
      barrier_wait(empty + buffer, parity ^ 1);
      numbers[buffer] = turn;
      barrier_arrive(full + buffer);
    }
  } else {
    more_registers<232>();
    int64_t sum = 0;
    for (int turn = 0; turn < p.turns; ++turn, next()) {
      barrier_wait(full + buffer, parity);
      sum += numbers[buffer] * int64_t(turn);
      barrier_arrive(empty + buffer);
    }
    p.sums[threadIdx.x - 128] = sum;
  }
}

// One mistake of those that need no result to be seen.
struct MistakeParams {
  TensorMap map;  // of two dimensions, with a box of 8 rows
  int which;
};

FUSED_RNN_KERNEL void mistake_kernel(const FUSED_RNN_PARAM MistakeParams p) {
  auto* const barriers = reinterpret_cast<Barrier*>(shared_memory());
  char* const box = aligned(shared_memory() + 64, 1024, 0);
  const bool is_first = threadIdx.x == 0;
  if (is_first && p.which != 0) {
    barrier_prepare(barriers, 1);
    if (p.which == 1) barrier_prepare(barriers, 1);
    if (p.which != 2) barriers_ready();
  }
  block_barrier();
  switch (p.which) {
    case 0:
    case 2:
      if (threadIdx.x == 1) barrier_arrive(barriers);
      break;
    case 3:
      if (is_first) barrier_arrive_and_expect(barriers, 16), barrier_arrive(barriers);
      break;
    case 4:
      if (is_first) barriers[0] += 1, barrier_arrive(barriers);
      break;
    case 5:
      if (is_first) barrier_arrive_and_expect(barriers, 1 << 20);
      break;
    case 6:
      if (is_first) barrier_arrive_and_expect(barriers, 1024), load_box(box + 64, p.map, barriers, 0, 0);
      break;
    case 7:
      if (is_first) barrier_arrive_and_expect(barriers, 1024), load_box(box, p.map, barriers, 0, 0, 0);
      break;
    case 8:
      if (is_first) barrier_arrive_and_expect(barriers, 1024), load_box(box + 1024, p.map, barriers, 0, 0);
      break;
    case 9:
      if (is_first) load_box(box, p.map, barriers, 0, 0), barrier_arrive(barriers);
      break;
    case 10:
      group_barrier(16, 32);
      break;
    case 11:
      group_barrier(1, 20);
      break;
    case 12:
      group_barrier(1, threadIdx.x < 32 ? 32 : 64);
      break;
    case 13:
      group_barrier(1, threadIdx.x < 32 ? 64 : 96);
      break;
    case 14:
      more_registers<256>();
      break;
    case 15:
      fewer_registers<256>();
      break;
    case 16:
      barrier_prepare(reinterpret_cast<Barrier*>(shared_memory() + 12), 1);
      break;
    case 17:
      barrier_wait(barriers, 2);
      break;
    case 18:
      barrier_prepare(barriers + 1 + threadIdx.x, 0);
      break;
  }
}

template <bool kBFloat16, int kColumns>
const char* multiply(bool left_depth_first, bool right_depth_first, const Launch& how, const MultiplyParams& params) {
  if (left_depth_first)
    return right_depth_first ? launch(multiply_kernel<kBFloat16, kColumns, true, true>, how, params)
                             : launch(multiply_kernel<kBFloat16, kColumns, true, false>, how, params);
  return right_depth_first ? launch(multiply_kernel<kBFloat16, kColumns, false, true>, how, params)
                           : launch(multiply_kernel<kBFloat16, kColumns, false, false>, how, params);
}

}  // namespace

extern "C" {

const char* hopper_describe(const Tensor* tensor) {
  TensorMap map;
  return tensor->describe(map);
}

const char* hopper_copy(const Tensor* from, const Tensor* to, const int (*from_at)[4], const int (*to_at)[4], int shift,
                        int extra_bytes, bool waits, char* raw) {
  CopyParams params = {};
  if (const char* error = from->describe(params.from)) return error;
  if (const char* error = to->describe(params.to)) return error;
  params.rank = from->rank, params.rows = from->box_rows(), params.shift = shift, params.waits = waits,
  params.raw = raw;
  params.bytes = params.rows * kRowBytes + extra_bytes;
  for (int i = 0; i < 4; ++i) params.from_at[i] = (*from_at)[i], params.to_at[i] = (*to_at)[i];
  return launch(copy_kernel, {1, kCopyThreads, 2048 + (shift + params.rows) * kRowBytes, 1, false, nullptr}, params);
}

const char* hopper_transpose(const Tensor* to, const uint16_t* values, int mistake) {
  TransposeParams params = {};
  if (const char* error = to->describe(params.to)) return error;
  params.values = values, params.mistake = mistake;
  return launch(transpose_kernel, {1, kTransposeWarps * 32, 4096, 1, false, nullptr}, params);
}

// `rows`, `shifts` and `groups` are those of the left and of the right operand.
const char* hopper_multiply(const Tensor* left, const Tensor* right, bool left_depth_first, bool right_depth_first,
                            int columns, const int (*shifts)[2], const int (*groups)[2], int steps, int mistake,
                            float* sums) {
  MultiplyParams params = {};
  if (const char* error = left->describe(params.left)) return error;
  if (const char* error = right->describe(params.right)) return error;
  params.left_rows = left->box_rows(), params.right_rows = right->box_rows();
  params.left_shift = (*shifts)[0], params.right_shift = (*shifts)[1];
  params.left_group = (*groups)[0], params.right_group = (*groups)[1];
  params.steps = steps, params.mistake = mistake, params.sums = sums;
  const Launch how = {1, 128, 2048 + (params.left_rows + 4 * params.right_rows) * kRowBytes, 1, false, nullptr};
  if (columns == 8) return multiply<false, 8>(left_depth_first, right_depth_first, how, params);
  if (columns == 112) return multiply<true, 112>(left_depth_first, right_depth_first, how, params);
  if (columns == 128) return multiply<false, 128>(left_depth_first, right_depth_first, how, params);
  return multiply<true, 256>(left_depth_first, right_depth_first, how, params);
}

const char* hopper_ring(int turns, int64_t* sums) {
  return launch(ring_kernel, {1, 256, 128, 1, false, nullptr}, RingParams{turns, sums});
}

const char* hopper_mistake(const Tensor* tensor, int which) {
  MistakeParams params = {};
  if (const char* error = tensor->describe(params.map)) return error;
  params.which = which;
  return launch(mistake_kernel, {1, 128, 64 + 1024 + 1024, 1, false, nullptr}, params);
}

}  // extern "C"

}  // namespace fused_rnn::cuda
