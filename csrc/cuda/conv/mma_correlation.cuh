// The forward pass of masked convolution, and its gradient by the input, as sums over active taps, by the matrix
// instructions of single warps: target[pixel, :] = sum over taps of W_tap source[pixel + place of tap, :].
//
// A block computes a tile of 128 pixels and 64 or 128 channels. Each stage of its sum has 64 bytes of source channels
// of one tap: of the 128 pixels that the tap reads, and of the tap's weights. Stages are copied to shared memory some
// ahead of the products. All taps of the same source channels follow each other, so that the pixels, of which
// neighbouring taps read mostly the same, come from the first-level cache. What is outside an image is zero in the
// copies, and not read.

#pragma once

#include "cuda/conv/mma_tiles.cuh"

namespace fused_rnn::cuda {

// Target channels that see the same source channels at the centre tap: those of one group, or all.
struct MmaRange {
  int begin, end;                // target channels
  int first_tile;                // the first of their tiles, counted over the target channels of all ranges
  int centre_begin, centre_end;  // the source channels that they see at the centre tap; none without groups
};

struct MmaCorrelationParams {
  const void* source;              // [pixels, source_channels]
  const void* weight;              // [out channels, taps, in channels]
  const void* bias;                // [target_channels], or null
  void* target;                    // [pixels, target_channels]
  int64_t out_stride, tap_stride;  // of the weight
  int source_channels, target_channels;
  int pixels, height, width;  // of all images, and of one
  int taps, row_length;       // that all channels see; tap t is at row t / row_length, column t % row_length
  int first_y, first_x;       // rows and columns from a pixel to the one that tap 0 reads for it
  int tap_y, tap_x;           // from there to those that the next row of taps, and the next tap, read
  int centre_tap, ranges, channel_tiles;
  bool relu;
  MmaRange range[kMostGroups];
};

template <typename T, int kChannels, bool kGradient>
struct MmaCorrelation {
  static constexpr int kDepth = kMmaDepthBytes / static_cast<int>(sizeof(T));  // source channels of a stage
  static constexpr int kStages = mma_stages(kChannels);
  static constexpr int kPixelBytes = kMmaPixels * kMmaDepthBytes;
  static constexpr int kStageBytes = kPixelBytes + kChannels * kMmaDepthBytes;
  static constexpr int kOwnPixels = kMmaPixels / 32;  // of which a thread copies a chunk
  static constexpr int kWarpPixels = kMmaPixels / 2, kWarpChannels = kChannels / 2;
  static constexpr int kDown = kWarpPixels / 16, kAcross = kWarpChannels / 8;  // products of a warp
  static constexpr int kNowhere = -(1 << 30);  // a row from which no tap reaches an image
  using Rows = ChannelRows<T, kChannels>;
  using Right = std::conditional_t<kGradient, RightInChannelRows<T, kChannels>, RightInDepthRows>;
  using Sums = float[kDown][kAcross][4];

  // A stage of the sum: a tap, and source channels from `depth` on, of which those before `end` count.
  struct Stage {
    int tap, x;  // and the column of the tap
    int dy, dx;  // from a pixel to the one that the tap reads for it
    int depth, end;
    bool centre;
  };

  const MmaCorrelationParams& params;
  const MmaRange& range;
  int channel, warp;
  MmaPixel pixel[kOwnPixels];
  // Where the thread's copies go, with a row and a chunk of it for each thread; and what it copies of the weight, but
  // for tap and depth.
  int row, chunk, pixel_place;
  int weight_row, weight_chunk, weight_place;
  const T* weight;

  FUSED_RNN_DEVICE static int range_of(const MmaCorrelationParams& params, int tile) {
    int range = 0;
    while (range + 1 < params.ranges && params.range[range + 1].first_tile <= tile) ++range;
    return range;
  }

  FUSED_RNN_DEVICE MmaCorrelation(const MmaCorrelationParams& params, int pixel_tile, int channel_tile)
      : params(params),
        range(params.range[range_of(params, channel_tile)]),
        channel(range.begin + (channel_tile - range.first_tile) * kChannels),
        warp(static_cast<int>(threadIdx.x) / 32),
        row(static_cast<int>(threadIdx.x) / 4),
        chunk(static_cast<int>(threadIdx.x) % 4),
        pixel_place(depth_place(row, chunk)) {
#pragma unroll
    for (int i = 0; i < kOwnPixels; ++i) {
      pixel[i] = MmaPixel::at(pixel_tile * kMmaPixels + row + 32 * i, params.height, params.width);
      if (pixel[i].index >= params.pixels) pixel[i].y = kNowhere;
    }
    const T* all = static_cast<const T*>(params.weight);
    if constexpr (kGradient) {
      weight_row = static_cast<int>(threadIdx.x) / Rows::kChunks;
      weight_chunk = static_cast<int>(threadIdx.x) % Rows::kChunks;
      weight_place = Rows::place(weight_row, weight_chunk);
      weight = all + weight_row * params.out_stride + channel + weight_chunk * kChunkValues<T>;
    } else {
      weight_row = row;
      weight_chunk = chunk;
      weight_place = pixel_place;
      weight = all + (channel + row) * params.out_stride + chunk * kChunkValues<T>;
    }
  }

  FUSED_RNN_DEVICE int stages() const {
    const int dense = (params.source_channels + kDepth - 1) / kDepth * params.taps;
    return dense + (range.centre_end - range.centre_begin + kDepth - 1) / kDepth;
  }
  FUSED_RNN_DEVICE Stage first() const {
    if (params.taps == 0) return at_centre();
    return {0, 0, params.first_y, params.first_x, 0, params.source_channels, false};
  }
  FUSED_RNN_DEVICE Stage at_centre() const {
    return {params.centre_tap, 0, 0, 0, range.centre_begin, range.centre_end, true};
  }
  FUSED_RNN_DEVICE void advance(Stage& stage) const {
    if (stage.centre) {
      stage.depth += kDepth;
      return;
    }
    stage.dx += params.tap_x;
    if (++stage.x == params.row_length) {
      stage.x = 0;
      stage.dx = params.first_x;
      stage.dy += params.tap_y;
    }
    if (++stage.tap < params.taps) return;
    const int depth = stage.depth + kDepth;
    stage = depth < params.source_channels ? first() : at_centre();
    if (!stage.centre) stage.depth = depth;
  }

  // Starts the copies of a stage.
  FUSED_RNN_DEVICE void copy(const Stage& stage, char* to) const {
    const int depth = stage.depth + chunk * kChunkValues<T>, distance = distance_of(stage.dy, stage.dx, params.width);
    const T* source = static_cast<const T*>(params.source) + depth;
#pragma unroll
    for (int i = 0; i < kOwnPixels; ++i) {
      const bool exists = (depth < stage.end) & pixel[i].sees(stage.dy, stage.dx, params.height, params.width);
      copy_chunk<true>(to + pixel_place + 32 * i * kMmaDepthBytes,
                       source + pixel[i].further(distance) * params.source_channels, exists);
    }
    copy_weight(stage, to + kPixelBytes + weight_place);
  }

  // Starts the copies of a tap's weights, with a row for each target channel or, in the gradient, which reads them in
  // place, for each source channel.
  FUSED_RNN_DEVICE void copy_weight(const Stage& stage, char* to) const {
    if constexpr (kGradient) {
      const T* from = weight + stage.depth * params.out_stride + stage.tap * params.tap_stride;
      const bool inside = channel + weight_chunk * kChunkValues<T> < range.end;
#pragma unroll
      for (int i = 0; i < kDepth; i += Rows::kRowsAtOnce)
        copy_chunk<false>(to + i * Rows::kBytes, from + i * params.out_stride,
                          inside & (stage.depth + weight_row + i < stage.end));
    } else {
      const T* from = weight + stage.tap * params.tap_stride + stage.depth;
      const bool inside = stage.depth + weight_chunk * kChunkValues<T> < stage.end;
#pragma unroll
      for (int i = 0; i < kChannels; i += 32)
        copy_chunk<false>(to + i * kMmaDepthBytes, from + i * params.out_stride,
                          inside & (channel + weight_row + i < range.end));
    }
  }

  // Sums the tile over all stages. While one is multiplied, those after it are copied; a buffer is filled again when
  // all warps have multiplied what was there, of which the barrier of the next stage makes sure.
  FUSED_RNN_DEVICE void sum_up(Sums& sum, char* ring) const {
    const int count = stages();
    Stage next = first();
    int copied = 0, filled = 0;  // stages, and the buffer of the next one
    const auto copy_next = [&] {
      if (copied < count) {
        copy(next, ring + filled * kStageBytes);
        advance(next);
      }
      ++copied;
      filled = filled + 1 == kStages ? 0 : filled + 1;
      copies_started();
    };
#pragma unroll 1
    for (int i = 0; i + 1 < kStages; ++i) copy_next();
    const LeftInDepthRows left(warp % 2 * kWarpPixels);
    const Right right(warp / 2 * kWarpChannels);
    for (int i = 0, buffer = 0; i < count; ++i, buffer = buffer + 1 == kStages ? 0 : buffer + 1) {
      copies_done<kStages - 2>();
      block_barrier();
      copy_next();
      multiply(sum, left, right, ring + buffer * kStageBytes);
    }
  }

  FUSED_RNN_DEVICE static void multiply(Sums& sum, const LeftInDepthRows& left, const Right& right, const char* stage) {
#pragma unroll
    for (int step = 0; step < kMmaDepthBytes / 32; ++step) {
      uint4 pixels[kDown];
#pragma unroll
      for (int i = 0; i < kDown; ++i) pixels[i] = left.load(stage, i, step);
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        const uint4 weights = right.load(stage + kPixelBytes, j, step);
#pragma unroll
        for (int i = 0; i < kDown; ++i) multiply_two<T>(sum[i] + j, pixels[i], weights);
      }
    }
  }

  // Stores the warp's sums, 16 pixels at a time. They go through shared memory, since a lane has two neighbouring
  // channels of several pixels, but is to store chunks.
  FUSED_RNN_DEVICE void store(const Sums& sum, int pixel_tile, char* memory) const {
    constexpr int kBytes = kWarpChannels * static_cast<int>(sizeof(T)) + 16, kChunks = kBytes / 16 - 1;
    const int first_pixel = pixel_tile * kMmaPixels + warp % 2 * kWarpPixels;
    const int first_channel = channel + warp / 2 * kWarpChannels, lane = static_cast<int>(threadIdx.x) % 32;
    char* rows = memory + warp * 16 * kBytes;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
      warp_barrier();
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        const int column = 8 * j + lane % 4 * 2;
        float bias[2] = {};
        // One by one, since the bias may begin at any of its values.
        if (params.bias && first_channel + column < range.end)
          for (int k = 0; k < 2; ++k) bias[k] = widen(static_cast<const T*>(params.bias)[first_channel + column + k]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float pair[2] = {sum[i][j][2 * half] + bias[0], sum[i][j][2 * half + 1] + bias[1]};
          if (params.relu)
            for (float& value : pair) value = value < 0 ? 0 : value;
          store_pair(reinterpret_cast<T*>(rows + (lane / 4 + 8 * half) * kBytes) + column, narrow_pair<T>(pair));
        }
      }
      warp_barrier();
#pragma unroll
      for (int k = lane; k < 16 * kChunks; k += 32) {
        const int row = k / kChunks, chunk = k % kChunks, at = first_pixel + 16 * i + row;
        const int to = first_channel + chunk * kChunkValues<T>;
        if (at < params.pixels && to < range.end)
          *reinterpret_cast<uint4*>(static_cast<T*>(params.target) + int64_t(at) * params.target_channels + to) =
              *reinterpret_cast<const uint4*>(rows + row * kBytes + chunk * 16);
      }
    }
  }
};

template <typename T, int kChannels, bool kGradient>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS_AND_BLOCKS(kMmaThreads, kMmaBlocksOnEach)
    mma_correlate(const FUSED_RNN_PARAM MmaCorrelationParams params) {
  const int index = static_cast<int>(blockIdx.x), pixel_tile = index / params.channel_tiles;
  const MmaCorrelation<T, kChannels, kGradient> tile(params, pixel_tile, index - pixel_tile * params.channel_tiles);
  float sum[kMmaPixels / 32][kChannels / 16][4] = {};
  tile.sum_up(sum, shared_memory());
  copies_done<0>();
  block_barrier();  // until all warps are done with the buffers
  tile.store(sum, pixel_tile, shared_memory());
}

}  // namespace fused_rnn::cuda
