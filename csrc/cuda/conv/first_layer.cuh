// Masked convolution of images with few channels, such as a first layer's, on Hopper's matrix units.
//
// All active taps and channels are one depth, of at most 128: for 256 pixels in raster order, a block makes the rows of
// that matrix (im2col) in shared memory, where the matrix instructions read it, from the lines of the images around
// them. The forward pass multiplies it with the weights, which a block gathers once. The weight gradient multiplies
// grad_output with it and sums over the pixels; a column of ones makes the bias gradient one more column.

#pragma once

#include "cuda/conv/pixels.cuh"

namespace fused_rnn::cuda {

// Target channels that see the same columns of the matrix: those of one group of channels, or all.
struct ColumnRange {
  int begin, end;    // channels
  int first_block;   // of 64 channels, counted over those of all ranges
  int columns;       // that they see, the first ones
  TensorMap target;  // the forward pass: [end, pixels], boxes of 64 x 64
};

// A column of the matrix: which row of the kernel it is of, and where its value is in the lines, in elements from the
// place of the pixel with tap 0.
struct Column {
  int row, offset;
};

// A pixel of a tile: where its place with tap 0 is in the lines, and from which row on the kernel is within the image;
// for a pixel that does not exist, no row is.
struct Pixel {
  int offset, first_row;
};

struct FirstLayerParams {
  const void* input;
  int64_t batch_stride, row_stride, column_stride, channel_stride;  // of the input
  const void* weight;                                               // the forward pass
  int64_t out_stride, in_stride, tap_stride;                        // of the weight or its gradient
  const void* bias;                                                 // [out_channels], or null
  TensorMap grad_output;  // the weight gradient: [out_channels, pixels], boxes of 64 x 256
  float* slots;       // the weight gradient: [2 * blocks, out_blocks, depth_blocks, 64, 64], a slot for each warpgroup
  void* grad_weight;  // or null
  void* grad_bias;    // or null
  Taps taps;          // that all channels see; the centre tap follows if there are groups
  int kernel_taps, in_channels, out_channels, height, width;
  int pixels;
  int columns;  // of the matrix, without the one of ones
  int pitch;    // elements of a line in shared memory
  int ranges;
  Centre centre;
  bool relu;
  FirstLayerPlan plan;
  ColumnRange range[kMostGroups];
};

// The shared memory of a block.
struct FirstLayerMemory {
  static constexpr int kBlockBytes = kFirstPixels * kRowBytes;  // 64 columns of the matrix
  static constexpr int kWeightBytes = kChannels * kRowBytes;    // of 64 output channels, for 64 columns
  static constexpr int kOutBytes = 64 * kRowBytes;              // 64 pixels of 64 channels
  static constexpr int kOutBuffers = 2;                         // of a warpgroup
  static constexpr int kColumnBytes = kMostColumns * sizeof(Column), kPixelBytes = kFirstPixels * sizeof(Pixel);

  static constexpr int64_t forward_bytes(const FirstLayerPlan& plan) {
    return kAlignment + plan.depth_blocks * (kBlockBytes + int64_t(plan.out_blocks) * kWeightBytes) +
           2 * kOutBuffers * kOutBytes + kColumnBytes + kPixelBytes + plan.line_bytes;
  }
  static constexpr int64_t gradient_bytes(const FirstLayerPlan& plan) {
    return kAlignment + (plan.depth_blocks + 2 * int64_t(plan.out_blocks)) * kBlockBytes + kColumnBytes + kPixelBytes +
           2 * 8 + plan.line_bytes;
  }
};

template <bool kBFloat16>
struct FirstLayer {
  using T = std::conditional_t<kBFloat16, bfloat16, float16>;

  const FirstLayerParams& params;
  char* matrix;   // [depth_blocks][256 pixels][64 columns]
  char* second;   // the weights, [depth_blocks][out_channels][64 columns]; or grad_output, [out_blocks][256 pixels][64
                  // channels]
  Column* table;  // [columns]
  Pixel* pixels;  // [256]

  FUSED_RNN_DEVICE explicit FirstLayer(const FirstLayerParams& of, int64_t second_bytes) : params(of) {
    matrix = aligned_for_boxes(shared_memory());
    second = matrix + params.plan.depth_blocks * FirstLayerMemory::kBlockBytes;
    table = reinterpret_cast<Column*>(second + second_bytes);
    pixels = reinterpret_cast<Pixel*>(reinterpret_cast<char*>(table) + FirstLayerMemory::kColumnBytes);
  }

  FUSED_RNN_DEVICE void describe_columns() const {
    for (int column = static_cast<int>(threadIdx.x); column < params.columns; column += kFirstThreads) {
      const int tap = column / params.in_channels, channel = column % params.in_channels;
      const int row = tap / params.taps.row_length, right = tap % params.taps.row_length * params.taps.dilation_x;
      table[column] = {row, row * params.taps.dilation_y * params.pitch + right * params.in_channels + channel};
    }
    block_barrier();
  }

  // Copies the lines of the images that the taps of a tile reach: those of its pixels and before_y before them. A line
  // has zeros for the pixels beyond both ends that taps reach.
  FUSED_RNN_DEVICE void load_lines(T* lines, int first_line, int count) const {
    constexpr int kAtOnce = 8;  // loads of a thread that do not wait for each other
    for (int start = static_cast<int>(threadIdx.x); start < count * params.pitch; start += kAtOnce * kFirstThreads) {
      T values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = start + i * kFirstThreads, which = at / params.pitch, within = at - which * params.pitch;
        const int column = within / params.in_channels, channel = within - column * params.in_channels;
        const int x = column - params.taps.before_x, line = first_line + which;
        values[i] = narrow<T>(0);
        if (which < count && line >= 0 && x >= 0 && x < params.width) {
          const int image = line / params.height, y = line - image * params.height;
          values[i] = static_cast<const T*>(params.input)[image * params.batch_stride + y * params.row_stride +
                                                          x * params.column_stride + channel * params.channel_stride];
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (const int at = start + i * kFirstThreads; at < count * params.pitch) lines[at] = values[i];
    }
  }

  // Makes the rows of the matrix for the pixels from `first` on: what is outside the image is zero, and the columns
  // after the last are zero, too, but for a column of ones that follows it if it is wanted. Those that no instruction
  // reads, or only for sums that nobody reads, stay as they are.
  FUSED_RNN_DEVICE void gather(T* lines, int first, int columns, bool ones) const {
    const int thread = static_cast<int>(threadIdx.x), first_line = first / params.width;
    const int last = first + kFirstPixels < params.pixels ? first + kFirstPixels : params.pixels;
    load_lines(lines, first_line - params.taps.before_y,
               (last - 1) / params.width - first_line + 1 + params.taps.before_y);
    const int from_line = first - first_line * params.width + thread;  // pixels from the first line's first
    const int down = from_line / params.width, y = (first_line + down) % params.height;
    // No active tap is below the pixel, so from some row on, the kernel is within the image.
    const int missing = params.taps.before_y - y;
    pixels[thread] = {down * params.pitch + (from_line - down * params.width) * params.in_channels,
                      first + thread >= params.pixels ? kNoRow
                      : missing > 0                   ? (missing + params.taps.dilation_y - 1) / params.taps.dilation_y
                                                      : 0};
    block_barrier();
    // A warp has 8 columns for half of the pixels at a time.
    const int tasks = (columns + (ones ? 1 : 0) + 15) / 16 * 2 * 2;
    for (int task = thread / 32; task < tasks; task += kFirstThreads / 32) {
      const int chunk = task / 2;
      char* block = matrix + chunk / 8 * FirstLayerMemory::kBlockBytes;
      Column of[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int column = chunk * 8 + i;
        of[i] = column < columns ? table[column] : Column{-1, 0};
      }
      for (int row = task % 2 * 128 + thread % 32; row < task % 2 * 128 + 128; row += 32) {
        const Pixel pixel = pixels[row];
        T values[8];
#pragma unroll
        for (int i = 0; i < 8; ++i)
          values[i] = of[i].row >= pixel.first_row ? lines[pixel.offset + of[i].offset] : narrow<T>(0);
        if (ones && chunk == columns / 8 && pixel.first_row != kNoRow) set_one(values, columns % 8);
        uint4 words;
        memcpy(&words, values, sizeof(words));
        store_operand(reinterpret_cast<uint4*>(chunk_at(block, row, chunk % 8)), words);
      }
    }
  }
  // Sets one of the values to one.
  static FUSED_RNN_DEVICE void set_one(T (&values)[8], int index) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i == index) values[i] = narrow<T>(1);
  }
  static constexpr int kNoRow = 1 << 30;

  // Sets the columns from `first` to before `end` of this thread's row to zero.
  FUSED_RNN_DEVICE void clear(int first, int end) const {
    const int row = static_cast<int>(threadIdx.x);
    for (int column = first; column < end; ++column) {
      char* block = matrix + column / kChannels * FirstLayerMemory::kBlockBytes;
      store_operand(reinterpret_cast<T*>(chunk_at(block, row, column % kChannels / 8)) + column % 8, narrow<T>(0));
    }
  }

  // Gathers the weights. Columns that an output channel does not see are zero.
  FUSED_RNN_DEVICE void gather_weights() const {
    const int rows = params.plan.out_blocks * kChannels, columns = (params.columns + 15) / 16 * 16;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int column = lane; column < columns; column += 32) {
      const int tap = column / params.in_channels, in = column - tap * params.in_channels;
      const T* from = static_cast<const T*>(params.weight) + in * params.in_stride + tap * params.tap_stride;
      char* block = second + column / kChannels * params.plan.out_blocks * FirstLayerMemory::kWeightBytes;
#pragma unroll 8
      for (int row = static_cast<int>(threadIdx.x) / 32; row < rows; row += kFirstThreads / 32) {
        int index = 0;
        while (index + 1 < params.ranges && params.range[index + 1].first_block <= row / kChannels) ++index;
        const ColumnRange& range = params.range[index];
        const int out = range.begin + row - range.first_block * kChannels;
        T value = narrow<T>(0);
        if (out < range.end && column < range.columns) value = from[out * params.out_stride];
        // Boxes of 64 output channels follow each other, so that `row` may be beyond the first.
        store_operand(reinterpret_cast<T*>(chunk_at(block, row, column % kChannels / 8)) + column % 8, value);
      }
    }
  }

  // The forward pass of a range of channels, of which a tile has 64, for the 128 pixels of a warpgroup.
  FUSED_RNN_DEVICE void multiply(float (&sum)[64], int group, int out_block, int columns) const {
    bool add = false;
    const uint32_t pixels = shared_address(matrix) + group * 128 * kRowBytes;
    matrices_begin();
    for (int depth = 0; depth < columns; depth += 16, add = true) {
      const int block = depth / kChannels, part = depth % kChannels / 16;
      const uint32_t left =
          shared_address(second) + (block * params.plan.out_blocks + out_block) * FirstLayerMemory::kWeightBytes;
      multiply_matrices<kBFloat16, 128, true, true>(
          sum, matrix_descriptor(left + part * 32, 8 * kRowBytes, 0),
          matrix_descriptor(pixels + block * FirstLayerMemory::kBlockBytes + part * 32, 8 * kRowBytes, 0), add);
    }
    matrices_started();
    matrices_done<0>();
  }

  FUSED_RNN_DEVICE void store(const float (&sum)[64], char* out, int group, int first, const ColumnRange& range,
                              int channel) const {
    const bool stores = threadIdx.x % 128 == 0;
    const Epilogue<T> epilogue(params.bias, channel, range.end, params.relu);
#pragma unroll
    for (int start = 0; start < 128; start += 64) {
      char* box = out + start / 64 * FirstLayerMemory::kOutBytes;
      if (stores) boxes_read<FirstLayerMemory::kOutBuffers - 1>();
      group_barrier(1 + group, 128);
      epilogue.template store<8>(sum, start / 8, box);
      group_barrier(1 + group, 128);
      if (stores) {
        store_box(range.target, box, channel, first + group * 128 + start, 0, 0);
        boxes_started();
      }
    }
  }

  FUSED_RNN_DEVICE void forward() const {
    const int group = warp_number() / 4;
    char* out = reinterpret_cast<char*>(pixels) + FirstLayerMemory::kPixelBytes;
    constexpr int kOutBytes = FirstLayerMemory::kOutBuffers * FirstLayerMemory::kOutBytes;
    T* lines = reinterpret_cast<T*>(out + 2 * kOutBytes);
    out += group * kOutBytes;
    describe_columns();
    wait_for_last_kernel();
    let_next_kernel_start();
    gather_weights();
    for (int tile = static_cast<int>(blockIdx.x); tile < params.plan.tiles; tile += params.plan.blocks) {
      const int first = tile * kFirstPixels;
      int columns = params.range[params.ranges - 1].columns;
      gather(lines, first, columns, false);
      // Later groups see more columns, so these come first; for earlier ones the rest is cleared.
      for (int index = params.ranges - 1; index >= 0; --index) {
        const ColumnRange& range = params.range[index];
        if (range.columns < columns) clear(range.columns, columns);
        columns = range.columns;
        shared_written();
        block_barrier();
        for (int block = 0; range.begin + block * kChannels < range.end; ++block) {
          float sum[64];
          multiply(sum, group, range.first_block + block, columns);
          store(sum, out, group, first, range, range.begin + block * kChannels);
        }
        block_barrier();
      }
    }
    if (threadIdx.x % 128 == 0) boxes_read<0>();
  }

  // Sums the weight gradient over this block's tiles; each warpgroup has 128 pixels of each.
  template <int kOutBlocks, int kDepthBlocks>
  FUSED_RNN_DEVICE void gradient() const {
    constexpr int64_t kStageBytes = int64_t(kOutBlocks) * FirstLayerMemory::kBlockBytes;
    const int group = warp_number() / 4;
    auto* full = reinterpret_cast<Barrier*>(reinterpret_cast<char*>(pixels) + FirstLayerMemory::kPixelBytes);
    T* lines = reinterpret_cast<T*>(full + 2);
    const auto load = [&](int tile, int stage) {
      if (threadIdx.x != 0 || tile >= params.plan.tiles) return;
      barrier_arrive_and_expect(full + stage, static_cast<int>(kStageBytes));
      for (int block = 0; block < kOutBlocks; ++block)
        load_box(second + stage * kStageBytes + block * FirstLayerMemory::kBlockBytes, params.grad_output, full + stage,
                 block * kChannels, tile * kFirstPixels, 0, 0);
    };
    if (threadIdx.x == 0) {
      barrier_prepare(full, 1);
      barrier_prepare(full + 1, 1);
      barriers_ready();
    }
    describe_columns();
    wait_for_last_kernel();
    let_next_kernel_start();
    float sum[kOutBlocks][kDepthBlocks][kChannels / 2];
#pragma unroll
    for (int o = 0; o < kOutBlocks; ++o)
#pragma unroll
      for (int d = 0; d < kDepthBlocks; ++d)
#pragma unroll
        for (float& value : sum[o][d]) value = 0;
    RingPosition at;
    load(static_cast<int>(blockIdx.x), 0);
    for (int tile = static_cast<int>(blockIdx.x); tile < params.plan.tiles; tile += params.plan.blocks) {
      load(tile + params.plan.blocks, 1 - at.stage);
      gather(lines, tile * kFirstPixels, params.columns, true);
      shared_written();
      block_barrier();
      barrier_wait(full + at.stage, at.parity);
      matrices_begin();
#pragma unroll
      for (int part = 0; part < 128 / 16; ++part) {
        const uint32_t pixels = (group * 128 + part * 16) * kRowBytes;
        const uint32_t grads = shared_address(second) + at.stage * static_cast<uint32_t>(kStageBytes) + pixels;
#pragma unroll
        for (int o = 0; o < kOutBlocks; ++o)
#pragma unroll
          for (int d = 0; d < kDepthBlocks; ++d)
            multiply_matrices<kBFloat16, kChannels, false, false>(
                sum[o][d], matrix_descriptor(grads + o * FirstLayerMemory::kBlockBytes, 8 * kRowBytes, 0),
                matrix_descriptor(shared_address(matrix) + d * FirstLayerMemory::kBlockBytes + pixels, 8 * kRowBytes,
                                  0),
                true);
      }
      matrices_started();
      matrices_done<0>();
      block_barrier();
      at.advance(2);
    }
    const int thread = static_cast<int>(threadIdx.x) % 128, row = thread / 32 * 16 + thread % 32 / 4;
    float* slot =
        params.slots + (int64_t(blockIdx.x) * 2 + group) * params.plan.slot_values() + row * kChannels + thread % 4 * 2;
#pragma unroll
    for (int o = 0; o < kOutBlocks; ++o)
#pragma unroll
      for (int d = 0; d < kDepthBlocks; ++d, slot += kChannels * kChannels)
#pragma unroll
        for (int i = 0; i < kChannels / 4; ++i) {
          const float2 pair = {sum[o][d][2 * i], sum[o][d][2 * i + 1]};
          *reinterpret_cast<float2*>(slot + i % 2 * 8 * kChannels + i / 2 * 8) = pair;
        }
  }
};

template <bool kBFloat16>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS_AND_BLOCKS(kFirstThreads, 2)
    convolve_first_layer(const FUSED_RNN_PARAM FirstLayerParams params) {
  if constexpr (kHasHopper) {
    const int64_t weight_bytes =
        int64_t(params.plan.depth_blocks) * params.plan.out_blocks * FirstLayerMemory::kWeightBytes;
    FirstLayer<kBFloat16>(params, weight_bytes).forward();
  } else {
    trap("this kernel was not compiled for this GPU");
  }
}

template <bool kBFloat16, int kOutBlocks, int kDepthBlocks>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS_AND_BLOCKS(kFirstThreads, first_blocks_on_each(kOutBlocks, kDepthBlocks))
    sum_first_layer_gradient(const FUSED_RNN_PARAM FirstLayerParams params) {
  if constexpr (kHasHopper) {
    FirstLayer<kBFloat16>(params, 2 * kOutBlocks * FirstLayerMemory::kBlockBytes)
        .template gradient<kOutBlocks, kDepthBlocks>();
  } else {
    trap("this kernel was not compiled for this GPU");
  }
}

// Adds the slots, in order. A block has 64 columns of one output channel: 64 groups of 16 threads add every 64th slot,
// four columns a thread. Masked entries are set to zero.
constexpr int kFirstAddends = 64, kFirstAddThreads = kFirstAddends * kChannels / 4;

template <bool kBFloat16>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kFirstAddThreads)
    add_first_layer_gradient(const FUSED_RNN_PARAM FirstLayerParams params) {
  using T = std::conditional_t<kBFloat16, bfloat16, float16>;
  wait_for_last_kernel();
  let_next_kernel_start();
  auto* shared = reinterpret_cast<float4*>(shared_memory());
  const int depth = params.plan.depth_blocks, out = static_cast<int>(blockIdx.x) / depth;
  const int block = static_cast<int>(blockIdx.x) % depth, thread = static_cast<int>(threadIdx.x);
  const float* from = params.slots +
                      ((int64_t(out / kChannels) * depth + block) * kChannels + out % kChannels) * kChannels +
                      thread % (kChannels / 4) * 4;
  float4 sum = {0, 0, 0, 0};
#pragma unroll 4
  for (int slot = thread / (kChannels / 4); slot < 2 * params.plan.blocks; slot += kFirstAddends)
    sum += *reinterpret_cast<const float4*>(from + slot * params.plan.slot_values());
  shared[thread] = sum;
  block_barrier();
  T* to = static_cast<T*>(params.grad_weight) + out * params.out_stride;
  const int weights = params.kernel_taps * params.in_channels;
  if (thread < kChannels) {
    float total = 0;
    for (int i = 0; i < kFirstAddends; ++i) total += reinterpret_cast<const float*>(shared)[i * kChannels + thread];
    const int column = block * kChannels + thread, tap = column / params.in_channels, in = column % params.in_channels;
    if (column == params.columns && params.grad_bias) static_cast<T*>(params.grad_bias)[out] = narrow<T>(total);
    if (column < params.columns && params.grad_weight)
      to[in * params.in_stride + tap * params.tap_stride] =
          narrow<T>(tap < params.taps.count || params.centre.sees(out, in) ? total : 0);
  }
  if (block == 0 && params.grad_weight)
    for (int i = params.columns + thread; i < weights; i += kFirstAddThreads)
      to[i % params.in_channels * params.in_stride + i / params.in_channels * params.tap_stride] = narrow<T>(0);
}

}  // namespace fused_rnn::cuda
