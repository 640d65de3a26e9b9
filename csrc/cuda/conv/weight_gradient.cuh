// The weight gradient of masked convolution on Hopper's matrix units: grad_weight[o, tap, c] = sum over pixels p of
// grad_output[p, o] * input[p + place of tap, c].
//
// One instruction computes up to four neighbouring taps of a row of the kernel for 64 input channels: its columns are
// views of the same pixels in shared memory, each one pixel further. A unit is such a run of taps, with 64 input
// channels and 64 or 128 output channels. A block sums some tiles of pixels of one unit and leaves the sums in its
// slot; a second kernel adds the slots of each unit, in their order. So the result is the same in every run.
//
// The bias gradient is summed from the same copies of grad_output by three warps of each block that have nothing else
// to do. All units with the same output channels read all tiles, so some of them take turns.

#pragma once

#include "cuda/conv/correlation.cuh"

namespace fused_rnn::cuda {

// A run of taps, and the first of the blocks that have units of it.
struct PlacedRun {
  Run run;
  int first_block;
  int turn;  // which it is of those that take turns with the bias gradient; -1 for others
};

struct WeightGradientParams {
  TensorMap grad_output;  // [out channels, width, height, batch], boxes of 64 x 8 x rows
  TensorMap grad_tail;    // the same, but only the last width % 8 columns of pixels
  TensorMap input;        // [in channels, width, height, batch], boxes of 64 x pitch x rows
  float* slots;           // [blocks, slot_values]
  float* bias_slots;      // [out_blocks, bias_parts, 64 * channel_groups], the parts of the bias gradient
  void* grad_weight;      // [out channels, kernel taps, in channels] by strides, or null
  void* grad_bias;        // [out channels], or null
  int64_t out_stride, in_stride, tap_stride;
  int in_channels, out_channels, kernel_taps;
  Centre centre;
  Taps taps;
  int runs, in_blocks, out_blocks;  // units of a run: by block of output channels, then block of input channels
  int turns;                        // runs that take turns with the bias gradient
  int bias_parts;                   // blocks that do, for the same output channels
  PlacedRun run[kMostRuns];
  int pitch;
  int width, height;  // of an image
  int columns, rows;  // tiles across an image, and down an image
  int addends;        // 1, 2 or 4; see add_weight_gradient
  WeightGradientPlan plan;
};

// The part of a unit that a block has.
struct Part {
  Run run;
  int out_channel, in_channel;
  int first_tile, tile_step;  // its tiles of pixels
  int bias_slot;
  // Which it is of the units that take turns with the bias gradient of their output channels, and how many these are;
  // none where other units do. They have runs of the same count, so that equal blocks of them have equal tiles.
  int turn, turns;
};
template <int kGroups>
FUSED_RNN_DEVICE Part part_of(const WeightGradientParams& params, int block) {
  int index = 0;
  while (index + 1 < params.runs && params.run[index + 1].first_block <= block) ++index;
  const PlacedRun& placed = params.run[index];
  const int splits = params.plan.splits[placed.run.count - 1], within = block - placed.first_block;
  const int unit = within / splits, split = within - unit * splits;
  const int out_block = unit / params.in_blocks, in_block = unit - out_block * params.in_blocks;
  const int turn = placed.turn * params.in_blocks + in_block;
  return {placed.run,
          out_block * kGroups * kChannels,
          in_block * kChannels,
          split,
          splits,
          out_block * params.bias_parts + turn * splits + split,
          turn,
          placed.turn < 0 ? 0 : params.turns * params.in_blocks};
}

constexpr int kBiasThreads = 96;

// The shared memory of a block: the ring of boxes and its barriers, and sums of the bias gradient.
struct WeightGradientMemory {
  static constexpr int kMostStages = 8, kBarrierBytes = 2 * kMostStages * 8, kBiasBytes = kBiasThreads * 8 * 4;
  static constexpr int64_t bytes(const WeightGradientPlan& plan) {
    return kAlignment + plan.stages * plan.stage_bytes + kBarrierBytes + kBiasBytes;
  }
};

template <bool kBFloat16, int kGroups>
struct WeightGradient {
  static constexpr int kConsumers = 128 * kGroups;
  using T = std::conditional_t<kBFloat16, bfloat16, float16>;

  const WeightGradientParams& params;
  const Part part;
  char* ring;
  Barrier *full, *empty;

  FUSED_RNN_DEVICE explicit WeightGradient(const WeightGradientParams& of)
      : params(of), part(part_of<kGroups>(of, static_cast<int>(blockIdx.x))) {
    ring = aligned_for_boxes(shared_memory());
    full = reinterpret_cast<Barrier*>(ring + params.plan.stages * params.plan.stage_bytes);
    empty = full + WeightGradientMemory::kMostStages;
  }

  FUSED_RNN_DEVICE void prepare() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < params.plan.stages; ++i) {
        barrier_prepare(full + i, 1);
        barrier_prepare(empty + i, (kConsumers + (sums_bias() ? kBiasThreads : 0)) / 32);
      }
      barriers_ready();
    }
    block_barrier();
  }

  FUSED_RNN_DEVICE bool sums_bias() const { return params.grad_bias && part.turns > 0; }
  FUSED_RNN_DEVICE int grad_bytes() const { return params.plan.rows * kTileWidth * kRowBytes; }

  // Copies all boxes, in the order in which they are used; called by one thread.
  //
  // A product with a pixel of a tile that is outside the image must be zero, even if the input is NaN or infinite where
  // a tap of that pixel is. So tiles reach beyond the top of the image, where the taps, none of which is below its
  // pixel, have zeros, too; and the last tile of a line ends with it, with zeros for the gradients that the one before
  // has. Only images narrower than a tile have such products.
  FUSED_RNN_DEVICE void produce() const {
    RingPosition at;
    const int bytes = (kGroups * kTileWidth + params.pitch) * params.plan.rows * kRowBytes;
    const int tap_y = part.run.first / params.taps.row_length, tap_x = part.run.first % params.taps.row_length;
    const int shift_y = tap_y * params.taps.dilation_y - params.taps.before_y;
    const int shift_x = tap_x * params.taps.dilation_x - params.taps.before_x;
    for (int tile = part.first_tile; tile < params.plan.tiles; tile += part.tile_step) {
      const int line = tile / params.columns, image = line / params.rows;
      const int column = tile - line * params.columns;
      const int y = params.height - (line - image * params.rows + 1) * params.plan.rows;
      const bool tail = column * kTileWidth + kTileWidth > params.width && params.width > kTileWidth;
      const int x = tail ? params.width - kTileWidth : column * kTileWidth;
      barrier_wait(empty + at.stage, at.parity ^ 1);
      barrier_arrive_and_expect(full + at.stage, bytes);
      char* to = ring + at.stage * params.plan.stage_bytes;
      for (int group = 0; group < kGroups; ++group, to += grad_bytes())
        load_box(to, tail ? params.grad_tail : params.grad_output, full + at.stage,
                 part.out_channel + group * kChannels, tail ? params.width % kTileWidth - kTileWidth : x, y, image);
      load_box(to, params.input, full + at.stage, part.in_channel, x + shift_x, y + shift_y, image);
      at.advance(params.plan.stages);
    }
  }

  // Sums the part for the 64 output channels that belong to the warpgroup `group`.
  FUSED_RNN_DEVICE void consume(int group) const {
    switch (part.run.count) {
      case 1:
        return multiply<1>(group);
      case 2:
        return multiply<2>(group);
      case 3:
        return multiply<3>(group);
      default:
        return multiply<4>(group);
    }
  }

  template <int kTaps>
  FUSED_RNN_DEVICE void multiply(int group) const {
    RingPosition at;
    float sum[kTaps * kChannels / 2];
#pragma unroll
    for (float& value : sum) value = 0;
    const bool arrives = threadIdx.x % 32 == 0;
    Barrier* read = nullptr;
    for (int tile = part.first_tile; tile < params.plan.tiles; tile += part.tile_step) {
      barrier_wait(full + at.stage, at.parity);
      const uint32_t stage = shared_address(ring) + at.stage * static_cast<uint32_t>(params.plan.stage_bytes);
      uint32_t grads = stage + group * grad_bytes(), pixels = stage + kGroups * grad_bytes();
      matrices_begin();
#pragma unroll 1
      for (int row = 0; row < params.plan.rows; row += 2) {
        multiply_matrices<kBFloat16, kTaps * kChannels, false, false>(
            sum, matrix_descriptor(grads, kTileWidth * kRowBytes, 0),
            matrix_descriptor(pixels, params.pitch * kRowBytes, params.taps.dilation_x * kRowBytes), true);
        grads += 2 * kTileWidth * kRowBytes;
        pixels += 2 * params.pitch * kRowBytes;
      }
      matrices_started();
      matrices_done<1>();
      if (arrives && read) barrier_arrive(read);
      read = empty + at.stage;
      at.advance(params.plan.stages);
    }
    matrices_done<0>();
    if (arrives && read) barrier_arrive(read);
    const int thread = static_cast<int>(threadIdx.x) % 128;
    float* to = params.slots + blockIdx.x * params.plan.slot_values() +
                (group * kChannels + thread / 32 * 16 + thread % 32 / 4) * (kChannels * kMostTaps) + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < kTaps * kChannels / 4; ++i) {
      const float2 pair = {sum[2 * i], sum[2 * i + 1]};
      *reinterpret_cast<float2*>(to + i % 2 * 8 * (kChannels * kMostTaps) + i / 2 * 8) = pair;
    }
  }

  // Sums the bias gradient over the tiles for which it is this unit's turn. Each thread has 8 channels of every 12th
  // pixel.
  FUSED_RNN_DEVICE void sum_bias(int thread) const {
    constexpr int kAcross = kChannels / 8, kDown = kBiasThreads / kAcross;
    const int chunk = thread % kAcross, first = thread / kAcross, pixels = params.plan.rows * kTileWidth;
    float sum[kGroups][8] = {};
    RingPosition at;
    int wait = part.turn;  // tiles until this unit's turn
    for (int tile = part.first_tile; tile < params.plan.tiles; tile += part.tile_step) {
      barrier_wait(full + at.stage, at.parity);
      if (wait-- == 0) {
        wait = part.turns - 1;
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          char* grads = ring + at.stage * params.plan.stage_bytes + group * grad_bytes();
#pragma unroll 4
          for (int pixel = first; pixel < pixels; pixel += kDown) {
            T values[8];
            const uint4 words = *reinterpret_cast<const uint4*>(chunk_at(grads, pixel, chunk));
            memcpy(values, &words, sizeof(words));
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[group][i] += widen(values[i]);
          }
        }
      }
      warp_barrier();
      if (thread % 32 == 0) barrier_arrive(empty + at.stage);
      at.advance(params.plan.stages);
    }
    auto* shared = reinterpret_cast<float*>(reinterpret_cast<char*>(empty + WeightGradientMemory::kMostStages));
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) shared[thread * 8 + i] = sum[group][i];
      group_barrier(1, kBiasThreads);
      if (thread < kChannels) {
        float total = 0;
        for (int i = 0; i < kDown; ++i) total += shared[i * kChannels + thread];
        params.bias_slots[(int64_t(part.bias_slot) * kGroups + group) * kChannels + thread] = total;
      }
      group_barrier(1, kBiasThreads);
    }
  }
};

// The threads of a block: those that multiply, and four warps that give registers to them, of which one copies and the
// others sum the bias gradient.
constexpr int gradient_threads(int groups) { return 128 * (groups + 1); }

template <bool kBFloat16, int kGroups>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(gradient_threads(kGroups))
    sum_weight_gradient(const FUSED_RNN_PARAM WeightGradientParams params) {
  if constexpr (kHasHopper) {
    const WeightGradient<kBFloat16, kGroups> gradient(params);
    gradient.prepare();
    wait_for_last_kernel();
    let_next_kernel_start();
    const int warp = warp_number();
    if (warp < 4 * kGroups) {
      more_registers<224>();
      gradient.consume(warp / 4);
    } else {
      fewer_registers<56>();
      const int thread = static_cast<int>(threadIdx.x) - 128 * kGroups;
      if (thread == 0) gradient.produce();
      if (thread >= 32 && gradient.sums_bias()) gradient.sum_bias(thread - 32);
    }
  } else {
    trap("this kernel was not compiled for this GPU");
  }
}

// Adds the slots, in the order of the blocks. A block has four groups of 64 threads. `addends` groups share the values
// of kRows output channels of a unit, four values of each a thread, and each adds every addends-th slot. They also set
// to zero what of the masked taps belongs to them. Further blocks add the bias gradient, each of 64 channels, in groups
// of 16 threads.
constexpr int kAddThreads = 256, kAddGroup = kChannels * kMostTaps / 4, kAddGroups = kAddThreads / kAddGroup;
constexpr int kAddRows = 4;  // where that leaves enough blocks; else 1

// Sets sum[r] to the sum of the 4 values at from + r * row_values of so many slots, over `groups` groups of `threads`
// threads, of which this thread is in number `group`; in the first of them. Every thread of the block calls it.
template <int kRows>
FUSED_RNN_DEVICE void add_slots(float4 (&sum)[kRows], const float* from, int64_t row_values, int slots,
                                int64_t slot_values, int group, int groups, int threads) {
  auto* shared = reinterpret_cast<float4*>(shared_memory());
#pragma unroll
  for (float4& value : sum) value = {0, 0, 0, 0};
#pragma unroll 2
  for (int slot = group; slot < slots; slot += groups)
#pragma unroll
    for (int row = 0; row < kRows; ++row)
      sum[row] += *reinterpret_cast<const float4*>(from + slot * slot_values + row * row_values);
  if (groups == 1) return;
#pragma unroll
  for (int row = 0; row < kRows; ++row) shared[row * kAddThreads + threadIdx.x] = sum[row];
  block_barrier();
#pragma unroll
  for (int row = 0; row < kRows; ++row)
    for (int i = 1; group == 0 && i < groups; ++i) sum[row] += shared[row * kAddThreads + threadIdx.x + i * threads];
}

template <bool kBFloat16, int kGroups>
FUSED_RNN_DEVICE void add_bias_gradient(const WeightGradientParams& params, int block) {
  using T = std::conditional_t<kBFloat16, bfloat16, float16>;
  constexpr int kThreads = kChannels / 4;
  const int group = static_cast<int>(threadIdx.x) / kThreads, lane = static_cast<int>(threadIdx.x) % kThreads;
  const int slots = params.bias_parts, channel = block * kChannels + lane * 4;
  const float* from =
      params.bias_slots + (int64_t(block / kGroups) * slots * kGroups + block % kGroups) * kChannels + lane * 4;
  float4 sum[1];
  add_slots(sum, from, 0, slots, kGroups * kChannels, group, kAddThreads / kThreads, kThreads);
  const float values[4] = {sum[0].x, sum[0].y, sum[0].z, sum[0].w};
  for (int i = 0; group == 0 && i < 4; ++i)
    if (channel + i < params.out_channels) static_cast<T*>(params.grad_bias)[channel + i] = narrow<T>(values[i]);
}

template <bool kBFloat16, int kGroups, int kRows>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kAddThreads)
    add_weight_gradient(const FUSED_RNN_PARAM WeightGradientParams params) {
  using T = std::conditional_t<kBFloat16, bfloat16, float16>;
  wait_for_last_kernel();
  let_next_kernel_start();
  const int rows = kRows * kAddGroups / params.addends;  // output channels of a block
  const int row_blocks = params.grad_weight ? (params.out_channels + rows - 1) / rows : 0;
  const int of_weight = row_blocks * params.in_blocks * params.runs;
  const int index = static_cast<int>(blockIdx.x);
  if (index >= of_weight) return add_bias_gradient<kBFloat16, kGroups>(params, index - of_weight);
  const int which = index / params.runs, run_index = index - which * params.runs;
  const int row_block = which / params.in_blocks, in_block = which - row_block * params.in_blocks;
  const int group = static_cast<int>(threadIdx.x) / kAddGroup, lane = static_cast<int>(threadIdx.x) % kAddGroup;
  const int first_out = row_block * rows + group / params.addends * kRows, addend = group % params.addends;
  const PlacedRun& placed = params.run[run_index];
  const int splits = params.plan.splits[placed.run.count - 1];
  const int64_t slot =
      placed.first_block + (int64_t(first_out / (kGroups * kChannels)) * params.in_blocks + in_block) * splits;
  // Output channels are a multiple of 8, and slots have all 64.
  const bool exists = first_out < params.out_channels && lane < placed.run.count * kChannels / 4;
  const float* from = params.slots + slot * params.plan.slot_values() +
                      first_out % (kGroups * kChannels) * (kChannels * kMostTaps) + lane * 4;
  float4 sum[kRows];
  add_slots(sum, from, kChannels * kMostTaps, exists ? splits : 0, params.plan.slot_values(), addend, params.addends,
            kAddGroup);
  if (first_out >= params.out_channels) return;
  T* to = static_cast<T*>(params.grad_weight) + first_out * params.out_stride;
  if (exists && addend == 0) {
    const int tap = placed.run.first + lane / (kChannels / 4), in = in_block * kChannels + lane % (kChannels / 4) * 4;
    const bool all = params.centre.groups == 1 || tap + 1 < params.taps.count;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float values[4] = {sum[row].x, sum[row].y, sum[row].z, sum[row].w};
      for (int i = 0; i < 4; ++i)
        if (in + i < params.in_channels)
          to[row * params.out_stride + tap * params.tap_stride + (in + i) * params.in_stride] =
              narrow<T>(all || params.centre.sees(first_out + row, in + i) ? values[i] : 0);
    }
  }
  const int in = in_block * kChannels + lane, step = params.runs * params.addends;
  for (int tap = params.taps.count + run_index * params.addends + addend; tap < params.kernel_taps; tap += step)
    for (int row = 0; row < kRows; ++row)
      if (in < params.in_channels)
        to[row * params.out_stride + tap * params.tap_stride + in * params.in_stride] = narrow<T>(0);
}

}  // namespace fused_rnn::cuda
