// How long a step takes, by formulas whose constants were fitted to what an NVIDIA H200 measured: to the files
// benchmarks/results/nvidia-h200-paths.csv, for the choice between paths, and nvidia-h200-plans.csv, for the choice
// among the plans of one path. docs/notes/recurrent-gpu.md says how well they agree. tests/cuda_on_host/fit.py prints
// the constants of the first choice.

#include "cuda/persistent/estimate.h"

namespace fused_rnn::cuda {
namespace {

// What the time of a persistent step depends on.
struct Work {
  int segments;   // parts of hidden_size values that blocks hand to one another for each sequence
  int written;    // bytes that a block writes side by side
  double passes;  // of a block over its sequences, batch_tiles * 8 at a time
  // Of a pass: matrix instructions, tiles of weights loaded from shared memory, chunks received, partial sums of a
  // warp.
  double products, weights, received, partials;

  Work(const PersistentPlan& plan, const PersistentProblem& problem) {
    const int sequences = plan.batch_tiles * kTileBatch;
    segments = problem.backward ? problem.gates : 1;
    written = plan.units * problem.element_bytes;
    passes = static_cast<double>(divide_up(plan.sequences, sequences));
    const double chunks = static_cast<double>(shared_layout(plan, problem).chunks) * segments;
    products = plan.row_tiles * chunks * plan.batch_tiles;
    weights = plan.chunks_in_registers > 0 ? 0 : plan.row_tiles * chunks;
    received = sequences * chunks;
    partials = sequences * partial_stride(plan.row_tiles);
  }
};

// Returns how many times one after the other the clusters of a plan run.
double waves(const PersistentPlan& plan, const Device& device) {
  const int at_once = plan.cluster ? device.clusters[plan.blocks] : 0;
  return at_once > 0 ? static_cast<double>(divide_up(int64_t(plan.groups) * plan.directions, at_once)) : 1;
}

// How many times as long a product of float32 takes in full precision as with tf32, forward and backward: it is three
// products, and their factors are split. From the few layers in nvidia-h200.json.
constexpr double kFullPrecision[] = {2.5, 2.0};

// Nanoseconds of a step of a persistent kernel.
struct PersistentTimes {
  double step;      // of every step
  double block;     // for each segment and block whose values a block reads
  double pass;      // of every pass over batch_tiles * 8 sequences
  double received;  // of a pass, for each chunk and sequence
  double product;   // of a pass, for each chunk, tile of rows and batch tile
  double weights;   // of a pass, for each chunk and tile of rows whose weights lie in shared memory
  double partial;   // of a pass, for each partial sum of a warp
  double narrow;    // of every step in which several blocks write into one sector of the L2 cache
};

const PersistentTimes& times_of(const PersistentPlan& plan, const PersistentProblem& problem) {
  // For each pass, for half precision and tf32: on a grid, in clusters.
  static constexpr PersistentTimes kForward[2][2] = {
      {{330, 0, 920, 2, 1.2, 3.1, 0.58, 210}, {400, 18, 940, 0, 3.6, 4.9, 0, 0}},
      {{480, 15, 0, 0, 16, 8.1, 1.7, 0}, {400, 0, 0, 0, 0, 10, 3.6, 0}},
  };
  static constexpr PersistentTimes kBackward[2][2] = {
      {{1200, 11, 0, 0.93, 1.6, 5.1, 3.5, 82}, {400, 16, 790, 0, 2.4, 20, 0.47, 0}},
      {{4900, 5.9, 0, 0, 21, 4.3, 0, 0}, {900, 43, 0, 1.7, 0, 30, 8.3, 0}},
  };
  return (problem.backward ? kBackward : kForward)[problem.element_bytes > 2][plan.cluster];
}

// Microseconds of a step of the stepwise path.
struct StepwiseTimes {
  double step;      // of every step
  double hidden;    // for 1000 hidden units
  double weights;   // for a megabyte of recurrent weights
  double products;  // for a gigaflop
  double states;    // for 1000 hidden units of a sequence
};

constexpr StepwiseTimes kStepwiseForward[] = {{4.9, 0.023, 0.13, 0.21, 0.018}, {7, 3.5, 0, 0, 0.015}};
constexpr StepwiseTimes kStepwiseBackward[] = {{7, 2.7, 0, 0, 0.022}, {6.3, 5.5, 0, 3, 0.054}};
// For a gigaflop without tf32: a third of the peak of an H200. Assumed, not fitted.
constexpr double kFullPrecisionProducts = 25;

}  // namespace

double order_within_path(const PersistentPlan& plan, const PersistentProblem& problem, const Device& device) {
  const Work work(plan, problem);
  const double instruction = problem.element_bytes == 2 ? 4 : problem.allow_tf32 ? 9 : 25;
  const double cells = problem.backward ? 2000 : 1350;
  const double meeting = plan.partials == 1 ? 100 : 0;
  double clocks = work.passes * (5 * work.weights + instruction * work.products + 1.7 * work.received +
                                 0.3 * work.partials + cells + meeting);
  // The way from block to block: every block reads the values of all blocks, and sectors of the L2 cache into which two
  // blocks write are slow.
  if (plan.cluster)
    clocks += 40 * plan.blocks;
  else if (plan.blocks > 1)
    clocks += 800 + 8 * work.segments * plan.blocks + (work.written < 32 ? 600 : 0) +
              (problem.backward && work.written < 64 ? 1800 : 0);
  return clocks * waves(plan, device) * static_cast<double>(problem.directions / plan.directions);
}

double order_of_warpgroups(const PersistentPlan& plan, const PersistentProblem& problem) {
  const SharedLayout layout = shared_layout(plan, problem);
  const int segments = problem.backward ? problem.gates : 1;
  const double passes = static_cast<double>(divide_up(plan.sequences, kWarpgroupSequences));
  const double received = double(kWarpgroupSequences) * layout.chunks_of_part(plan.split) * segments * kChunkBytes;
  const double partials = double(kWarpgroupSequences) * partial_stride(plan.row_tiles) * 4 * (plan.split - 1);
  // Assumed, not measured: bytes that a block reads in a clock through the L2 cache and from the cluster, and the
  // clocks in which blocks meet, a cluster or not.
  const double clocks = passes * (received / 22 + partials / 24 + (plan.split > 1 ? 1200 : 800));
  return clocks * static_cast<double>(problem.directions / plan.directions);
}

double estimate_step(const PersistentPlan& plan, const PersistentProblem& problem, const Device& device) {
  const Work work(plan, problem);
  const PersistentTimes& times = times_of(plan, problem);
  const bool full_precision = problem.element_bytes == 4 && !problem.allow_tf32;
  const double pass = times.pass + times.received * work.received +
                      times.product * (full_precision ? kFullPrecision[problem.backward] : 1) * work.products +
                      times.weights * work.weights + times.partial * work.partials;
  double nanoseconds = times.step + times.block * plan.blocks * work.segments + work.passes * pass;
  if (work.written < (problem.backward ? 64 : 32)) nanoseconds += times.narrow;
  return nanoseconds * waves(plan, device) * static_cast<double>(problem.directions / plan.directions) / 1e3;
}

double estimate_stepwise(const PersistentProblem& problem) {
  const StepwiseTimes& times = (problem.backward ? kStepwiseBackward : kStepwiseForward)[problem.element_bytes > 2];
  const auto batch = static_cast<double>(problem.batch), hidden = static_cast<double>(problem.hidden_size);
  const double weights = problem.gates * hidden * hidden;
  const bool full_precision = problem.element_bytes == 4 && !problem.allow_tf32;
  const double step = times.step + times.hidden * hidden / 1e3 + times.weights * weights * problem.element_bytes / 1e6 +
                      (times.products + (full_precision ? kFullPrecisionProducts : 0)) * 2 * weights * batch / 1e9 +
                      times.states * batch * hidden / 1e3;
  return static_cast<double>(problem.directions) * step;
}

}  // namespace fused_rnn::cuda
