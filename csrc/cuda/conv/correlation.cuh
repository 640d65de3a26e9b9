// The forward pass of masked convolution, and its gradient by the input, as sums over active taps on Hopper's matrix
// units: target[pixel, :] = sum over taps of W_tap source[pixel + place of tap, :].
//
// A block computes tiles of kRows x 8 pixels and kGroups x 64 channels. For 64 channels of the source at a time, it
// copies the tile's pixels with all that their taps reach once; each tap is then a view of the same copy that starts
// some rows later, since a matrix instruction finds its operand by a start address and a distance between groups of 8
// pixels. So a tile costs one copy of its pixels and a copy of each tap's weights. One warp copies; each of the other
// warpgroups multiplies the weights of its 64 channels with the pixels. What is outside the image is zero in the
// copies, and not stored.

#pragma once

#include "cuda/conv/pixels.cuh"

namespace fused_rnn::cuda {

// Target channels that see the same source channels at the centre tap: those of one group, or all.
struct ChannelRange {
  int begin, end;                // target channels
  int first_block;               // the first of their tiles, counted over the target channels of all ranges
  int centre_begin, centre_end;  // the source channels that they see at the centre tap; none without groups
  TensorMap target;              // [end, width, height, batch], boxes of 64 x 8 x stored_rows
  TensorMap source;              // [centre_end, width, height, batch], boxes of a tile
  TensorMap weight;  // [in channels, taps, out channels], of which centre_end source channels, boxes of 64 x 1 x 64
};

struct CorrelationParams {
  TensorMap source;  // [source channels, width, height, batch], boxes with what the taps of a tile reach
  TensorMap weight;  // [in channels, taps, out channels], boxes of 64 x 1 x 64
  const void* bias;  // [target channels], or null
  int source_channels;
  int before_y, before_x;       // pixels from a tile's first pixel back to the first of its box
  int taps, row_length;         // that all channels see; tap t is at row t / row_length, column t % row_length
  int first_row, tap_y, tap_x;  // the view of tap (y, x) starts with row first_row + y * tap_y + x * tap_x of the box
  int pitch;                    // rows of the box from one row of pixels to the next
  int box_rows;                 // of pixels
  int columns, rows, channel_blocks;  // tiles across an image, down an image, and of its channels
  bool relu;
  CorrelationPlan plan;
  int centre_tap, ranges;
  ChannelRange range[kMostGroups];
};

// Rows of pixels that are stored at once.
constexpr int stored_rows(int rows) { return rows % 8 == 0 ? 8 : 7; }

// The shared memory of a block.
struct CorrelationMemory {
  static constexpr int kWeightBytes = kChannels * kRowBytes;  // of one tap, 64 channels by 64 channels
  static constexpr int kOutBuffers = 2;                       // of each warpgroup
  static constexpr int kMostSourceStages = 2, kMostWeightStages = 8;
  static constexpr int kBarrierBytes = 2 * (kMostSourceStages + kMostWeightStages) * 8;

  static constexpr int out_bytes(int rows) { return stored_rows(rows) * kTileWidth * kRowBytes; }
  static constexpr int64_t bytes(const CorrelationPlan& plan) {
    return kAlignment + plan.source_stages * plan.box_bytes +
           int64_t(plan.weight_stages) * plan.channel_groups * kWeightBytes +
           kOutBuffers * plan.channel_groups * out_bytes(plan.rows) + kBarrierBytes;
  }
};

// Where a tile is: its image, first pixel, range of channels, and first channel.
struct Tile {
  int image, y, x, range, channel;
};

// A part of a tile's sums: 64 source channels, from `depth` on, and either the taps that all channels see or the centre
// tap for those of a range.
struct Pass {
  bool centre;
  int depth;
};

template <bool kBFloat16, int kRows, int kGroups, bool kGradient>
struct Correlation {
  static constexpr int kPixels = kRows * kTileWidth;
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kStored = stored_rows(kRows), kOutBytes = CorrelationMemory::out_bytes(kRows);
  using T = std::conditional_t<kBFloat16, bfloat16, float16>;
  using Sums = float[kPixels / 2];

  const CorrelationParams& params;
  char *source, *weight, *out;
  Barrier *source_full, *source_empty, *weight_full, *weight_empty;

  FUSED_RNN_DEVICE explicit Correlation(const CorrelationParams& of) : params(of) {
    source = aligned_for_boxes(shared_memory());
    weight = source + params.plan.source_stages * params.plan.box_bytes;
    out = weight + params.plan.weight_stages * kGroups * CorrelationMemory::kWeightBytes;
    source_full = reinterpret_cast<Barrier*>(out + CorrelationMemory::kOutBuffers * kGroups * kOutBytes);
    source_empty = source_full + CorrelationMemory::kMostSourceStages;
    weight_full = source_empty + CorrelationMemory::kMostSourceStages;
    weight_empty = weight_full + CorrelationMemory::kMostWeightStages;
  }

  FUSED_RNN_DEVICE void prepare() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < params.plan.source_stages; ++i) {
        barrier_prepare(source_full + i, 1);
        barrier_prepare(source_empty + i, kConsumers / 32);
      }
      for (int i = 0; i < params.plan.weight_stages; ++i) {
        barrier_prepare(weight_full + i, 1);
        barrier_prepare(weight_empty + i, kConsumers / 32);
      }
      barriers_ready();
    }
    block_barrier();
  }

  FUSED_RNN_DEVICE Tile tile_at(int64_t index) const {
    const int block = static_cast<int>(index % params.channel_blocks);
    int range = 0;
    while (range + 1 < params.ranges && params.range[range + 1].first_block <= block) ++range;
    const int channel = params.range[range].begin + (block - params.range[range].first_block) * kGroups * kChannels;
    const int64_t pixels = index / params.channel_blocks;
    const int column = static_cast<int>(pixels % params.columns);
    const int row = static_cast<int>(pixels / params.columns % params.rows);
    return {static_cast<int>(pixels / params.columns / params.rows), row * kRows, column * kTileWidth, range, channel};
  }

  // The passes of a tile: those of the taps that all channels see, then those of the centre tap.
  FUSED_RNN_DEVICE int dense_passes() const {
    return params.taps > 0 ? (params.source_channels + kChannels - 1) / kChannels : 0;
  }
  FUSED_RNN_DEVICE int passes(const Tile& tile) const {
    const ChannelRange& range = params.range[tile.range];
    return dense_passes() + (range.centre_end - range.centre_begin + kChannels - 1) / kChannels;
  }
  FUSED_RNN_DEVICE Pass pass_at(const Tile& tile, int index) const {
    const ChannelRange& range = params.range[tile.range];
    const int dense = dense_passes(), depth = index * kChannels;
    if (index < dense) return {false, depth};
    return {true, range.centre_begin + depth - dense * kChannels};
  }

  // Copies all boxes, in the order in which they are used; called by one thread.
  FUSED_RNN_DEVICE void produce() const {
    RingPosition boxes, weights;
    for (int64_t at = blockIdx.x; at < params.plan.tiles; at += params.plan.blocks) {
      const Tile tile = tile_at(at);
      const ChannelRange& range = params.range[tile.range];
      for (int index = 0; index < passes(tile); ++index) {
        const Pass pass = pass_at(tile, index);
        char* box = source + boxes.stage * params.plan.box_bytes;
        barrier_wait(source_empty + boxes.stage, boxes.parity ^ 1);
        if (pass.centre) {
          barrier_arrive_and_expect(source_full + boxes.stage, kPixels * kRowBytes);
          load_box(box, range.source, source_full + boxes.stage, pass.depth, tile.x, tile.y, tile.image);
        } else {
          barrier_arrive_and_expect(source_full + boxes.stage, params.pitch * params.box_rows * kRowBytes);
          load_box(box, params.source, source_full + boxes.stage, pass.depth, tile.x - params.before_x,
                   tile.y - params.before_y, tile.image);
        }
        boxes.advance(params.plan.source_stages);
        if (pass.centre)
          load_weight(range.weight, params.centre_tap, pass.depth, tile, weights);
        else
          for (int tap = 0; tap < params.taps; ++tap) load_weight(params.weight, tap, pass.depth, tile, weights);
      }
    }
  }
  FUSED_RNN_DEVICE void load_weight(const TensorMap& from, int tap, int depth, const Tile& tile,
                                    RingPosition& weights) const {
    Barrier* full = weight_full + weights.stage;
    barrier_wait(weight_empty + weights.stage, weights.parity ^ 1);
    barrier_arrive_and_expect(full, kGroups * CorrelationMemory::kWeightBytes);
    char* to = weight + weights.stage * kGroups * CorrelationMemory::kWeightBytes;
    for (int group = 0; group < kGroups; ++group, to += CorrelationMemory::kWeightBytes) {
      const int channel = tile.channel + group * kChannels;
      load_box(to, from, full, kGradient ? channel : depth, tap, kGradient ? depth : channel);
    }
    weights.advance(params.plan.weight_stages);
  }

  // Computes and stores the tiles' 64 channels that belong to the warpgroup `group`.
  FUSED_RNN_DEVICE void consume(int group) const {
    RingPosition boxes, weights;
    Sums sum;
    int buffer = 0;
    for (int64_t at = blockIdx.x; at < params.plan.tiles; at += params.plan.blocks) {
      Tile tile = tile_at(at);
      multiply(sum, group, tile, boxes, weights);
      tile.channel += group * kChannels;
      store(sum, group, tile, buffer);
    }
    if (threadIdx.x % 128 == 0) boxes_read<0>();
  }

  // Sums a tile over all taps and channels of the source. A batch of instructions is started before the last one is
  // done, so that the matrix units do not wait; then the buffers of the last one are free.
  FUSED_RNN_DEVICE void multiply(Sums& sum, int group, const Tile& tile, RingPosition& boxes,
                                 RingPosition& weights) const {
    const bool arrives = threadIdx.x % 32 == 0;
    const int count = passes(tile);
    Barrier *read_weight = nullptr, *read_source = nullptr;
    const auto release = [&] {
      if (arrives && read_weight) barrier_arrive(read_weight);
      if (arrives && read_source) barrier_arrive(read_source);
      read_weight = read_source = nullptr;
    };
    bool add = false;
    for (int index = 0; index < count; ++index) {
      const bool centre = pass_at(tile, index).centre;
      const int taps = centre ? 1 : params.taps, pitch = (centre ? kTileWidth : params.pitch) * kRowBytes;
      barrier_wait(source_full + boxes.stage, boxes.parity);
      const uint32_t pixels = shared_address(source) + boxes.stage * static_cast<uint32_t>(params.plan.box_bytes) +
                              (centre ? 0 : params.first_row) * kRowBytes;
      int y = 0, x = 0;
      for (int tap = 0; tap < taps; ++tap) {
        barrier_wait(weight_full + weights.stage, weights.parity);
        const uint32_t left =
            shared_address(weight) + (weights.stage * kGroups + group) * CorrelationMemory::kWeightBytes;
        const uint32_t right = pixels + (y * params.tap_y + x * params.tap_x) * kRowBytes;
        matrices_begin();
#pragma unroll
        for (int part = 0; part < kChannels / 16; ++part, add = true)
          multiply_matrices<kBFloat16, kPixels, !kGradient, true>(
              sum, matrix_descriptor(left + part * (kGradient ? 16 * kRowBytes : 32), 8 * kRowBytes, 0),
              matrix_descriptor(right + part * 32, pitch, 0), add);
        matrices_started();
        matrices_done<1>();
        release();
        read_weight = weight_empty + weights.stage;
        weights.advance(params.plan.weight_stages);
        if (++x == params.row_length) {
          x = 0;
          ++y;
        }
      }
      read_source = source_empty + boxes.stage;
      boxes.advance(params.plan.source_stages);
      if (params.plan.source_stages == 1 || index + 1 == count) {
        matrices_done<0>();
        release();
      }
    }
  }

  FUSED_RNN_DEVICE void store(const Sums& sum, int group, const Tile& tile, int& buffer) const {
    const bool stores = threadIdx.x % 128 == 0;
    const ChannelRange& range = params.range[tile.range];
    const Epilogue<T> epilogue(params.bias, tile.channel, range.end, params.relu);
#pragma unroll
    for (int first = 0; first < kRows; first += kStored) {
      char* box = out + (group * CorrelationMemory::kOutBuffers + buffer) * kOutBytes;
      if (stores) boxes_read<CorrelationMemory::kOutBuffers - 1>();
      group_barrier(1 + group, 128);
      epilogue.template store<kStored>(sum, first, box);
      group_barrier(1 + group, 128);
      if (stores) {
        store_box(range.target, box, tile.channel, tile.x, tile.y + first, tile.image);
        boxes_started();
      }
      buffer = (buffer + 1) % CorrelationMemory::kOutBuffers;
    }
  }
};

// The threads of a block: those that multiply, and a warp that copies.
constexpr int threads_of(int groups) { return 128 * groups + 32; }

template <bool kBFloat16, int kRows, int kGroups, bool kGradient>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS_AND_BLOCKS(threads_of(kGroups), blocks_on_each(kGroups))
    correlate(const FUSED_RNN_PARAM CorrelationParams params) {
  if constexpr (kHasHopper) {
    const Correlation<kBFloat16, kRows, kGroups, kGradient> correlation(params);
    correlation.prepare();
    wait_for_last_kernel();
    let_next_kernel_start();
    const int warp = warp_number();
    if (warp < 4 * kGroups)
      correlation.consume(warp / 4);
    else if (threadIdx.x % 32 == 0)
      correlation.produce();
  } else {
    trap("this kernel was not compiled for this GPU");
  }
}

}  // namespace fused_rnn::cuda
