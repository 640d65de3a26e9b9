// From a network to the tasks of its kernel, and the launch of that.

#include <algorithm>

#include "cuda/pixel_network.h"
#include "cuda/pixelwise/network.cuh"

namespace fused_rnn::cuda {
namespace {

template <typename T>
PixelPlace<T> place(const PixelValue<T>& value) {
  return {value.data,
          value.data,
          value.image_stride,
          static_cast<int>(value.row_stride),
          static_cast<int>(value.column_stride),
          static_cast<int>(value.rows),
          static_cast<int>(value.channels)};
}

int log_of(int64_t count, int most) {
  int log = 0;
  while (log < most && (int64_t(1) << log) < count) ++log;
  return log;
}

template <typename T>
PixelSums<T> sums(const PixelNetworkParams<T>& p, const PixelConvolution<T>& convolution, const PixelPlace<T>& input) {
  constexpr int64_t kPer = kPerVector<T>;
  static_assert(kPixelThreads == 1 << 8);
  const MaskedConv2dSizes& s = convolution.sizes;
  const PixelPacking packing(s, p.groups, sizeof(T));
  PixelSums<T> sums = {};
  sums.weights = p.packed + convolution.packed;
  sums.bias = convolution.bias;
  sums.in_channels = static_cast<int>(s.in_channels);
  sums.out_channels = static_cast<int>(s.out_channels);
  sums.kernel_width = static_cast<int>(s.kernel_width);
  sums.middle_row = static_cast<int>(s.kernel_height / 2);
  sums.middle_column = static_cast<int>(s.kernel_width / 2);
  sums.dilation_height = static_cast<int>(s.dilation_height);
  sums.dilation_width = static_cast<int>(s.dilation_width);
  sums.taps_above = sums.middle_row * sums.kernel_width;
  sums.dense_taps = static_cast<int>(s.dense_taps);
  sums.groups = static_cast<int>(packing.groups);
  sums.width = static_cast<int>(packing.width);
  sums.centre_by_groups = s.centre_depends_on_groups();
  sums.own_group = s.own_group;
  sums.vectors = reinterpret_cast<uintptr_t>(input.data) % 16 == 0 && s.in_channels % kPer == 0 &&
                 input.image_stride % kPer == 0 && input.row_stride % kPer == 0 && input.column_stride % kPer == 0;
  sums.log_lanes = log_of(packing.width / kPer, 8);
  sums.log_pixel_slices = 8 - sums.log_lanes;
  sums.log_row_slices = sums.log_pixel_slices - log_of(divide_up(p.width, kRowTile), sums.log_pixel_slices);
  return sums;
}

// Whether a task can be computed by the threads that have computed the one before, channel by channel.
bool may_follow(const PixelNode& node, const PixelNode& before) {
  const bool by_channel =
      node.kind == PixelNodeKind::kReLU || node.kind == PixelNodeKind::kAdd || node.kind == PixelNodeKind::kMultiply;
  return by_channel && node.whole_row == before.whole_row && before.kind != PixelNodeKind::kCopy &&
         (node.inputs[0] == before.output || node.inputs[1] == before.output);
}

template <typename T>
void make(const PixelNetworkParams<T>& p, PixelTask<T>* tasks) {
  for (int64_t i = 0; i < p.node_count; ++i) {
    const PixelNode& node = p.nodes[i];
    PixelTask<T> task = {};
    task.kind = node.kind;
    task.whole_row = node.whole_row;
    task.from = static_cast<int>(node.from);
    task.to = static_cast<int>(node.to);
    task.channels = static_cast<int>(node.channels);
    task.output = place(p.values[node.output]);
    for (int input = 0; input < 2; ++input) {
      task.inputs[input] = place(p.values[node.inputs[input]]);
      task.takes[input] = i > 0 && node.inputs[input] == p.nodes[i - 1].output;
    }
    task.follows = i > 0 && may_follow(node, p.nodes[i - 1]);
    if (node.kind == PixelNodeKind::kConvolution) task.sums = sums(p, p.convolutions[node.convolution], task.inputs[0]);
    tasks[i] = task;
  }
}

template <typename T>
const char* launch_network(const PixelNetworkParams<T>& p, const PixelTask<T>* tasks, const Device& gpu, void* stream) {
  PixelKernelParams<T> params = {};
  params.tasks = tasks;
  params.task_count = static_cast<int>(p.node_count);
  params.batch = static_cast<int>(p.batch);
  // As few images to a block as there are multiprocessors for.
  const int64_t blocks = gpu.most_blocks > 0 ? std::min(gpu.most_blocks, gpu.multiprocessors) : gpu.multiprocessors;
  params.images =
      static_cast<int>(std::min<int64_t>(kMostBlockImages, divide_up(p.batch, std::max<int64_t>(1, blocks))));
  params.width = static_cast<int>(p.width);
  params.groups = static_cast<int>(p.groups);
  params.begin = p.begin;
  params.end = p.end;
  params.input = place(p.values[0]);
  params.draw = p.draw;
  params.not_finite = p.not_finite;
  const int64_t shared_bytes = p.node_count * static_cast<int64_t>(sizeof(PixelTask<T>)) + work_bytes();
  return launch(evaluate_pixels<T>, {divide_up(p.batch, params.images), kPixelThreads, shared_bytes, 1, false, stream},
                params);
}

}  // namespace

void make_tasks(const PixelNetworkParams<float>& params, PixelTask<float>* tasks) { make(params, tasks); }
void make_tasks(const PixelNetworkParams<double>& params, PixelTask<double>* tasks) { make(params, tasks); }

int64_t most_nodes(int64_t element_bytes, const Device& gpu) {
  const auto bytes = static_cast<int64_t>(element_bytes == 4 ? sizeof(PixelTask<float>) : sizeof(PixelTask<double>));
  return std::max<int64_t>(0, gpu.shared_bytes - work_bytes()) / bytes;
}

const char* pixel_network(const PixelNetworkParams<float>& params, const PixelTask<float>* tasks, const Device& gpu,
                          void* stream) {
  return launch_network(params, tasks, gpu, stream);
}
const char* pixel_network(const PixelNetworkParams<double>& params, const PixelTask<double>* tasks, const Device& gpu,
                          void* stream) {
  return launch_network(params, tasks, gpu, stream);
}

}  // namespace fused_rnn::cuda
