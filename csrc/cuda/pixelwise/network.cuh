// The kernel that evaluates a network pixel by pixel. When a row begins, everything that depends only on the rows above
// is computed for the whole row, as on the CPU; at each pixel only the taps of its own row are left. A node is computed
// by all threads of the block, which then wait for one another, unless the next node follows at once.

#pragma once

#include "cuda/kit/activation.cuh"
#include "cuda/kit/platform.cuh"
#include "cuda/pixelwise/convolution.cuh"
#include "cuda/pixelwise/draw.cuh"
#include "cuda/pixelwise/task.h"

namespace fused_rnn::cuda {

// The arguments of the kernel. Its shared memory has the tasks and, behind them, work_bytes().
template <typename T>
struct PixelKernelParams {
  const PixelTask<T>* tasks;
  int task_count, batch, images, width, groups;  // `images` are those of a block
  int64_t begin, end;                            // as in PixelNetworkParams
  PixelPlace<T> input;
  PixelDraw<T> draw;
  int64_t* not_finite;
};

// The bytes in which threads add up parts of sums, or choose levels.
constexpr int64_t work_bytes() { return int64_t(kPixelThreads) * kRowTile * 16; }
static_assert(sizeof(Choosing) * (kPixelThreads / kWarpLanes) <= work_bytes());

template <typename T>
struct PixelBlock {
  const PixelKernelParams<T>& p;
  PixelTask<T>* tasks;  // in shared memory
  char* work;           // the same
  int first_image, images;

  // Sets where the pixels of a row are.
  FUSED_RNN_DEVICE void enter_row(int row) const {
    const auto enter = [&](PixelPlace<T>& place) { place.row = place.data + row % place.rows * place.row_stride; };
    for (int i = static_cast<int>(threadIdx.x); i < p.task_count; i += kPixelThreads) {
      enter(tasks[i].inputs[0]);
      enter(tasks[i].inputs[1]);
      enter(tasks[i].output);
    }
    block_barrier();
  }

  // Computes everything of a row that depends only on the rows above.
  FUSED_RNN_DEVICE void begin_row(int row) const {
    const PixelRange range = {first_image, images, row, 0, p.width};
    for (int i = 0; i < p.task_count; ++i) {
      const PixelTask<T>& task = tasks[i];
      const bool is_convolution = task.kind == PixelNodeKind::kConvolution;
      if (task.follows) continue;
      if (task.whole_row)
        is_convolution ? convolve_groups<kRowTile>(i, TapRows::kAll, 0, task.sums.groups, range)
                       : compute(i, 0, p.groups, range);
      else if (is_convolution && task.sums.taps_above > 0)
        convolve_groups<kRowTile>(i, TapRows::kAbove, 0, task.sums.groups, range);
    }
  }

  // Computes what is left of one group of a pixel's channels, and draws it.
  FUSED_RNN_DEVICE void finish_pixel(int row, int column, int group) const {
    const PixelRange range = {first_image, images, row, column, 1};
    for (int i = 0; i < p.task_count; ++i) {
      const PixelTask<T>& task = tasks[i];
      if (task.whole_row || task.follows) continue;
      if (task.kind != PixelNodeKind::kConvolution) {
        compute(i, group, group + 1, range);
        continue;
      }
      // Where the network has one group, a convolution may have several.
      const int begin = p.groups > 1 ? group : 0, end = p.groups > 1 ? group + 1 : task.sums.groups;
      if (images == 1)
        convolve_groups<1>(i, TapRows::kOwn, begin, end, range);
      else if (images == 2)
        convolve_groups<2>(i, TapRows::kOwn, begin, end, range);
      else
        convolve_groups<4>(i, TapRows::kOwn, begin, end, range);
    }
    draw(row, column, group);
  }

 private:
  // Computes the sums of some groups of a convolution's channels. Those of the taps above wait in the output for the
  // taps of the pixel's own row.
  template <int kTile>
  FUSED_RNN_DEVICE void convolve_groups(int index, TapRows rows, int begin, int end, const PixelRange& range) const {
    const PixelTask<T>& task = tasks[index];
    const PixelSums<T>& sums = task.sums;
    const bool continues = rows == TapRows::kOwn && sums.taps_above > 0;
    for (int group = begin; group < end; ++group) {
      const int first = static_cast<int>(first_of_group(group, sums.groups, sums.out_channels));
      const int channels = static_cast<int>(first_of_group(group + 1, sums.groups, sums.out_channels)) - first;
      convolve<kTile>(task, rows, group, channels, range, p.width, reinterpret_cast<T*>(work),
                      [&](int image, int column, int channel, T sum) {
                        channel += first;
                        T* const output = at(task.output, image, column) + channel;
                        if (continues)
                          sum += *output;
                        else if (sums.bias)
                          sum += sums.bias[channel];
                        if (rows == TapRows::kAbove)
                          *output = sum;
                        else
                          finish(index, image, column, channel, sum);
                      });
    }
  }

  // Computes some groups of a node's channels, where it is no convolution.
  FUSED_RNN_DEVICE void compute(int index, int group_begin, int group_end, const PixelRange& range) const {
    const PixelTask<T>& task = tasks[index];
    const bool copies = task.kind == PixelNodeKind::kCopy, gates = task.kind == PixelNodeKind::kGate;
    int begin = 0, end = copies ? task.channels : task.output.channels;
    // A gate may have another number of groups than the network, and is then computed as a whole.
    if (!copies && (!gates || task.channels == p.groups)) {
      const int channels = end;
      begin = static_cast<int>(first_of_group(group_begin, p.groups, channels));
      end = static_cast<int>(first_of_group(group_end, p.groups, channels));
    }
    const int channels = end - begin, count = channels * range.count();
    for (int e = static_cast<int>(threadIdx.x); e < count; e += kPixelThreads) {
      const int pixel = e < channels ? 0 : e / channels, channel = begin + e - pixel * channels;
      const int image = first_image + range.image(pixel), column = range.column(pixel);
      const T* a = at(task.inputs[0], image, column);
      if (copies) {
        finish(index, image, column, task.to + channel, a[task.from + channel]);
      } else if (gates) {
        const int size = task.output.channels / task.channels, group = channel / size;
        a += channel + group * size;
        finish(index, image, column, channel, Activation::tanh(a[0]) * Activation::sigmoid(a[size]));
      } else {
        const T b = at(task.inputs[1], image, column)[channel];
        finish(index, image, column, channel, pointwise(task.kind, a[channel], b));
      }
    }
    block_barrier();
  }

  static FUSED_RNN_DEVICE T pointwise(PixelNodeKind kind, T a, T b) {
    if (kind == PixelNodeKind::kReLU) return Activation::relu(a);
    return kind == PixelNodeKind::kAdd ? a + b : a * b;
  }

  // Writes what a node has computed for a channel, and what those make of it that follow at once.
  FUSED_RNN_DEVICE void finish(int index, int image, int column, int channel, T value) const {
    for (;;) {
      at(tasks[index].output, image, column)[channel] = value;
      if (++index == p.task_count || !tasks[index].follows) return;
      const PixelTask<T>& task = tasks[index];
      const T a = task.takes[0] ? value : at(task.inputs[0], image, column)[channel];
      const T b = task.takes[1] ? value : at(task.inputs[1], image, column)[channel];
      value = pointwise(task.kind, a, b);
    }
  }

  // Draws a group of a pixel's channels, which become the network's input, and copies what they are drawn from.
  FUSED_RNN_DEVICE void draw(int row, int column, int group) const {
    const PixelDraw<T>& d = p.draw;
    const PixelPlace<T>& output = tasks[p.task_count - 1].output;
    const int begin = static_cast<int>(first_of_group(group, p.groups, output.channels));
    const int count = static_cast<int>(first_of_group(group + 1, p.groups, output.channels)) - begin;
    const int thread = static_cast<int>(threadIdx.x);
    for (int e = thread; d.outputs && e < count * images; e += kPixelThreads) {
      const int image = first_image + e / count, channel = begin + e % count;
      d.outputs[((int64_t(image) * output.channels + channel) * d.height + row) * p.width + column] =
          at(output, image, column)[channel];
    }
    const int drawn = d.distribution == PixelDistribution::kNone ? 0 : images;
    Choosing& shared = reinterpret_cast<Choosing*>(work)[thread / kWarpLanes];
    for (int i = thread / kWarpLanes; i < drawn; i += kPixelThreads / kWarpLanes)
      draw_image(first_image + i, row, column, group, at(output, first_image + i, column) + begin, count, shared);
    block_barrier();
  }

  // The same for one image, by one warp.
  FUSED_RNN_DEVICE void draw_image(int image, int row, int column, int group, const T* outputs, int count,
                                   Choosing& shared) const {
    const PixelDraw<T>& d = p.draw;
    const int64_t pixel = (image * d.height + row) * p.width + column;
    const int begin = static_cast<int>(first_of_group(group, p.groups, d.channels));
    const int end = static_cast<int>(first_of_group(group + 1, p.groups, d.channels));
    const auto level_at = [&](int64_t channel) -> int64_t& {
      return d.image[((image * d.channels + channel) * d.height + row) * p.width + column];
    };
    const double* uniforms = d.uniforms + (pixel * p.groups + group) * d.numbers;
    const bool is_drawn = !d.observed || !d.observed[pixel];
    if (is_drawn && !draw_levels(d, outputs, count, begin, uniforms, shared, level_at)) *p.not_finite = 1;
    if (threadIdx.x % kWarpLanes != 0) return;
    T* const input = p.input.data + row % p.input.rows * p.input.row_stride + image * p.input.image_stride +
                     column * p.input.column_stride;
    for (int channel = begin; channel < end; ++channel) input[channel] = d.scaled[level_at(channel)];
  }
};

template <typename T>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPixelThreads) evaluate_pixels(const FUSED_RNN_PARAM PixelKernelParams<T> p) {
  static_assert(sizeof(PixelTask<T>) % 16 == 0, "what is behind the tasks must be aligned");
  auto* const tasks = reinterpret_cast<PixelTask<T>*>(shared_memory());
  const int first_image = static_cast<int>(blockIdx.x) * p.images, left = p.batch - first_image;
  const PixelBlock<T> block = {p, tasks, shared_memory() + p.task_count * sizeof(PixelTask<T>), first_image,
                               left < p.images ? left : p.images};
  for (int i = static_cast<int>(threadIdx.x); i < p.task_count; i += kPixelThreads) tasks[i] = p.tasks[i];
  block_barrier();
  const int64_t steps = int64_t(p.width) * p.groups;  // of a row
  for (int64_t row = p.begin / steps, step = p.begin; step < p.end; ++row) {
    block.enter_row(static_cast<int>(row));
    if (step == row * steps) block.begin_row(static_cast<int>(row));
    for (; step < p.end && step < (row + 1) * steps; ++step) {
      const int in_row = static_cast<int>(step - row * steps);
      block.finish_pixel(static_cast<int>(row), in_row / p.groups, in_row % p.groups);
    }
  }
}

}  // namespace fused_rnn::cuda
