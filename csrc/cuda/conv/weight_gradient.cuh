// The weight gradient of masked convolution on Hopper's matrix units: grad_weight[o, tap, c] = sum over pixels p of
// grad_output[p, o] * input[p + place of tap, c].
//
// One instruction computes up to four neighbouring taps of a row of the kernel for 64 input channels: its columns are
// views of the same pixels in shared memory, each one pixel further. A unit is such a run of taps, with 64 input channels
// and 64 or 128 output channels. A block sums some tiles of pixels of one unit and leaves the sums in its slot; a second
// kernel adds the slots of each unit, in their order. So the result is the same in every run.

#pragma once

#include "cuda/conv/correlation.cuh"

namespace fused_rnn::cuda {

// A run of taps, and the first of the blocks that have units of it.
struct PlacedRun {
  Run run;
  int first_block;
};

struct WeightGradientParams {
  TensorMap grad_output;  // [out channels, width, height, batch], boxes of 64 x 8 x rows
  TensorMap input;        // [in channels, width, height, batch], boxes of 64 x pitch x rows
  float* slots;           // [blocks, slot_values]
  void* grad_weight;      // [out channels, kernel taps, in channels] by strides, or null
  void* grad_bias;        // [out channels], or null
  int64_t out_stride, in_stride, tap_stride;
  int in_channels, out_channels, kernel_taps;
  Centre centre;
  Taps taps;
  int runs, in_blocks, out_blocks;  // units of a run: by block of output channels, then block of input channels
  PlacedRun run[kMostRuns];
  int pitch;
  int columns, rows;  // tiles across an image, and down an image
  int addends;        // see add_weight_gradient
  WeightGradientPlan plan;
};

// The part of a unit that a block has.
struct Part {
  Run run;
  int out_channel, in_channel;
  int first_tile, tile_step;  // its tiles of pixels
  int unit, units;            // which it is of the units that have the same output channels, and how many they are
};
template <int kGroups>
FUSED_RNN_DEVICE Part part_of(const WeightGradientParams& params, int block) {
  int index = 0;
  while (index + 1 < params.runs && params.run[index + 1].first_block <= block) ++index;
  const Run run = params.run[index].run;
  const int splits = params.plan.splits[run.count - 1], within = block - params.run[index].first_block;
  const int unit = within / splits;
  return {run, unit / params.in_blocks * kGroups * kChannels, unit % params.in_blocks * kChannels,
          within - unit * splits, splits,
          index * params.in_blocks + unit % params.in_blocks, params.runs * params.in_blocks};
}

// The shared memory of a block: a matrix of ones for the bias gradient, the ring of boxes, its barriers.
struct WeightGradientMemory {
  static constexpr int kOnesBytes = 1024, kMostStages = 8, kBarrierBytes = 2 * kMostStages * 8;
  static constexpr int64_t bytes(const WeightGradientPlan& plan) {
    return kAlignment + kOnesBytes + plan.stages * plan.stage_bytes + kBarrierBytes;
  }
};

template <bool kBFloat16, int kGroups>
struct WeightGradient {
  static constexpr int kConsumers = 128 * kGroups;
  using T = std::conditional_t<kBFloat16, bfloat16, float16>;

  const WeightGradientParams& params;
  const Part part;
  char *ones, *ring;
  Barrier *full, *empty;

  FUSED_RNN_DEVICE explicit WeightGradient(const WeightGradientParams& of)
      : params(of),
        part(part_of<kGroups>(of, static_cast<int>(blockIdx.x))) {
    ones = aligned_for_boxes(shared_memory());
    ring = ones + WeightGradientMemory::kOnesBytes;
    full = reinterpret_cast<Barrier*>(ring + params.plan.stages * params.plan.stage_bytes);
    empty = full + WeightGradientMemory::kMostStages;
  }

  FUSED_RNN_DEVICE void prepare() const {
    for (unsigned i = threadIdx.x; i < WeightGradientMemory::kOnesBytes / sizeof(T); i += blockDim.x)
      reinterpret_cast<T*>(ones)[i] = narrow<T>(1);
    shared_written();
    if (threadIdx.x == 0) {
      for (int i = 0; i < params.plan.stages; ++i) {
        barrier_prepare(full + i, 1);
        barrier_prepare(empty + i, kConsumers / 32);
      }
      barriers_ready();
    }
    block_barrier();
  }

  FUSED_RNN_DEVICE int grad_bytes() const { return params.plan.rows * kTileWidth * kRowBytes; }

  // Copies all boxes, in the order in which they are used; called by one thread.
  FUSED_RNN_DEVICE void produce() const {
    RingPosition at;
    const int bytes = (kGroups * kTileWidth + params.pitch) * params.plan.rows * kRowBytes;
    const int tap_y = part.run.first / params.taps.row_length, tap_x = part.run.first % params.taps.row_length;
    const int shift_y = tap_y * params.taps.dilation_y - params.taps.before_y;
    const int shift_x = tap_x * params.taps.dilation_x - params.taps.before_x;
    for (int tile = part.first_tile; tile < params.plan.tiles; tile += part.tile_step) {
      const int line = tile / params.columns, image = line / params.rows;
      const int x = (tile - line * params.columns) * kTileWidth, y = (line - image * params.rows) * params.plan.rows;
      barrier_wait(empty + at.stage, at.parity ^ 1);
      barrier_arrive_and_expect(full + at.stage, bytes);
      char* to = ring + at.stage * params.plan.stage_bytes;
      for (int group = 0; group < kGroups; ++group, to += grad_bytes())
        load_box(to, params.grad_output, full + at.stage, part.out_channel + group * kChannels, x, y, image);
      load_box(to, params.input, full + at.stage, part.in_channel, x + shift_x, y + shift_y, image);
      at.advance(params.plan.stages);
    }
  }

  FUSED_RNN_DEVICE float* slot_of(int group) const {
    return params.slots + blockIdx.x * params.plan.slot_values() + group * kChannels * (kChannels * kMostTaps + 1);
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

  // Starts the instructions that sum one tile, also its part of the bias gradient if wanted.
  template <int kTaps, bool kBias>
  FUSED_RNN_DEVICE void multiply_tile(float (&sum)[kTaps * kChannels / 2], float (&bias)[4], uint32_t grads,
                                      uint32_t pixels) const {
#pragma unroll 1
    for (int row = 0; row < params.plan.rows; row += 2) {
      const uint64_t left = matrix_descriptor(grads, kTileWidth * kRowBytes, 0);
      multiply_matrices<kBFloat16, kTaps * kChannels, false, false>(
          sum, left, matrix_descriptor(pixels, params.pitch * kRowBytes, params.taps.dilation_x * kRowBytes), true);
      if constexpr (kBias)
        multiply_matrices<kBFloat16, 8, false, true>(bias, left, matrix_descriptor(shared_address(ones), 1024, 0), true);
      grads += 2 * kTileWidth * kRowBytes;
      pixels += 2 * params.pitch * kRowBytes;
    }
  }

  template <int kTaps>
  FUSED_RNN_DEVICE void multiply(int group) const {
    RingPosition at;
    float sum[kTaps * kChannels / 2], bias[4] = {0, 0, 0, 0};
#pragma unroll
    for (float& value : sum) value = 0;
    const bool arrives = threadIdx.x % 32 == 0;
    Barrier* read = nullptr;
    for (int tile = part.first_tile; tile < params.plan.tiles; tile += part.tile_step) {
      barrier_wait(full + at.stage, at.parity);
      const uint32_t stage = shared_address(ring) + at.stage * static_cast<uint32_t>(params.plan.stage_bytes);
      const uint32_t grads = stage + group * grad_bytes(), pixels = stage + kGroups * grad_bytes();
      matrices_begin();
      // All units that have these output channels read all pixels, so they take turns with the bias gradient.
      if (params.grad_bias && tile / params.columns % part.units == part.unit)
        multiply_tile<kTaps, true>(sum, bias, grads, pixels);
      else
        multiply_tile<kTaps, false>(sum, bias, grads, pixels);
      matrices_started();
      matrices_done<1>();
      if (arrives && read) barrier_arrive(read);
      read = empty + at.stage;
      at.advance(params.plan.stages);
    }
    matrices_done<0>();
    if (arrives && read) barrier_arrive(read);
    const int thread = static_cast<int>(threadIdx.x) % 128, row = thread / 32 * 16 + thread % 32 / 4;
    float* to = params.slots + blockIdx.x * params.plan.slot_values() + group * kChannels * (kChannels * kMostTaps + 1);
    if (thread % 4 == 0) {
      to[kChannels * kChannels * kMostTaps + row] = bias[0];
      to[kChannels * kChannels * kMostTaps + row + 8] = bias[2];
    }
    to += row * (kChannels * kMostTaps) + thread % 4 * 2;
#pragma unroll
    for (int i = 0; i < kTaps * kChannels / 4; ++i) {
      const float2 pair = {sum[2 * i], sum[2 * i + 1]};
      *reinterpret_cast<float2*>(to + i % 2 * 8 * (kChannels * kMostTaps) + i / 2 * 8) = pair;
    }
  }
};

// The threads of a block: those that multiply, and four warps that give registers to them, of which one copies.
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
      if (threadIdx.x == 128 * kGroups) gradient.produce();
    }
  } else {
    trap("this kernel was not compiled for this GPU");
  }
}

// Adds the slots of each unit, in the order of the blocks. A group of 16 threads has 64 input channels of one tap and one
// output channel, or the bias gradient of 64 output channels; `addends` groups share them, of which each adds every
// addends-th slot. Masked taps are set to zero.
constexpr int kAddThreads = 256, kAddGroup = kChannels / 4, kMostAddends = kAddThreads / kAddGroup;

FUSED_RNN_DEVICE void operator+=(float4& sum, const float4& part) {
  sum.x += part.x;
  sum.y += part.y;
  sum.z += part.z;
  sum.w += part.w;
}

// Adds to `sum` 4 values of so many slots, from value `at` of the first on, those of this thread's group alone.
FUSED_RNN_DEVICE void add_slots(float4& sum, const WeightGradientParams& params, int64_t first_slot, int slots,
                                int64_t at) {
  const int group = static_cast<int>(threadIdx.x) / kAddGroup;
  const float* from = params.slots + first_slot * params.plan.slot_values() + at;
#pragma unroll 4
  for (int slot = group % params.addends; slot < slots; slot += params.addends)
    sum += *reinterpret_cast<const float4*>(from + slot * params.plan.slot_values());
}

// The sum over the groups that share an addition; every thread of the block calls it.
FUSED_RNN_DEVICE float4 add_groups(const WeightGradientParams& params, const float4& part) {
  if (params.addends == 1) return part;
  auto* shared = reinterpret_cast<float4*>(shared_memory());
  const int thread = static_cast<int>(threadIdx.x);
  const int first = thread / kAddGroup / params.addends * params.addends;
  shared[thread] = part;
  block_barrier();
  float4 sum = {0, 0, 0, 0};
  for (int i = 0; i < params.addends; ++i) sum += shared[(first + i) * kAddGroup + thread % kAddGroup];
  return sum;
}

template <bool kBFloat16, int kGroups>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kAddThreads)
    add_weight_gradient(const FUSED_RNN_PARAM WeightGradientParams params) {
  using T = std::conditional_t<kBFloat16, bfloat16, float16>;
  constexpr int kValues = kChannels * (kChannels * kMostTaps + 1);  // of a slot, for 64 output channels
  wait_for_last_kernel();
  let_next_kernel_start();
  const int thread = static_cast<int>(threadIdx.x), group = thread / kAddGroup, lane = thread % kAddGroup;
  const bool first = group % params.addends == 0;
  const int index = static_cast<int>(blockIdx.x) * (kMostAddends / params.addends) + group / params.addends;
  const int of_weight = params.grad_weight ? params.out_channels * params.kernel_taps * params.in_blocks : 0;
  float4 sum = {0, 0, 0, 0};
  const auto store = [&](T* to, int64_t stride, int channel, int channels, const float4& sum, const auto& seen) {
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    if (first)
      for (int i = 0; i < 4; ++i)
        if (channel + i < channels) to[(channel + i) * stride] = narrow<T>(seen(channel + i) ? values[i] : 0);
  };
  if (index >= of_weight) {
    // All units with these output channels have a part of the bias gradient.
    const int block = index - of_weight, channel = block * kChannels + lane * 4;
    const bool wanted = params.grad_bias && channel < params.out_channels;
    const int64_t at = block % kGroups * kValues + kChannels * kChannels * kMostTaps + lane * 4;
    for (int run = 0; wanted && run < params.runs; ++run) {
      const int splits = params.plan.splits[params.run[run].run.count - 1], slots = params.in_blocks * splits;
      add_slots(sum, params, params.run[run].first_block + int64_t(block / kGroups) * slots, slots, at);
    }
    sum = add_groups(params, sum);
    if (wanted) store(static_cast<T*>(params.grad_bias), 1, channel, params.out_channels, sum, [](int) { return true; });
    return;
  }
  const int in_block = index % params.in_blocks, tap = index / params.in_blocks % params.kernel_taps;
  const int out = index / params.in_blocks / params.kernel_taps, row = out % (kGroups * kChannels);
  if (tap < params.taps.count) {
    const PlacedRun& placed = params.run[run_with(params.taps, tap)];
    const int splits = params.plan.splits[placed.run.count - 1];
    add_slots(sum, params,
              placed.first_block + (int64_t(out / (kGroups * kChannels)) * params.in_blocks + in_block) * splits, splits,
              row / kChannels * kValues + row % kChannels * (kChannels * kMostTaps) +
                  (tap - placed.run.first) * kChannels + lane * 4);
  }
  sum = add_groups(params, sum);
  store(static_cast<T*>(params.grad_weight) + out * params.out_stride + tap * params.tap_stride, params.in_stride,
        in_block * kChannels + lane * 4, params.in_channels, sum, [&](int in) {
          return params.centre.groups == 1 || tap + 1 < params.taps.count || params.centre.sees(out, in);
        });
}

}  // namespace fused_rnn::cuda
