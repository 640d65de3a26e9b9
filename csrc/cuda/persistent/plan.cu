// The choice of a plan: of all that fit, the one whose step takes the least time by an estimate whose constants were
// fitted to measurements; see docs/notes/recurrent-gpu.md.

#include <initializer_list>

#include "cuda/persistent/plan.h"

namespace fused_rnn::cuda {
namespace {

constexpr double kClock = 1980;          // clocks of a microsecond
constexpr int64_t kClusterBlocks = 120;  // blocks of clusters that run at once; a few less with clusters of 16 blocks

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

bool allowed_by(const PlanOverride& plan_override, const PersistentPlan& plan) {
  return (plan_override.path == Path::kAny || (plan_override.path == Path::kCluster) == plan.cluster) &&
         (plan_override.blocks == 0 || plan_override.blocks == plan.blocks) &&
         (plan_override.groups == 0 || plan_override.groups == plan.groups) &&
         (plan_override.batch_tiles == 0 || plan_override.batch_tiles == plan.batch_tiles) &&
         (plan_override.chunks_in_registers < 0 || plan_override.chunks_in_registers == plan.chunks_in_registers);
}

}  // namespace

double estimate_step(const PersistentPlan& plan, const PersistentProblem& problem) {
  const int segments = problem.backward ? problem.gates : 1;
  const double chunks = static_cast<double>(shared_layout(plan, problem).chunks) * segments;
  const double sequences = plan.batch_tiles * kTileBatch;
  const double passes = static_cast<double>(divide_up(plan.sequences, plan.batch_tiles * kTileBatch));
  // Clocks of one step of batch_tiles * 8 sequences: loading weights from shared memory, matrix instructions, loading
  // what was handed over, partial sums, and the cells.
  const double weights = plan.chunks_in_registers > 0 ? 0 : 5 * plan.row_tiles * chunks;
  const double instruction = problem.element_bytes == 2 ? 4 : problem.allow_tf32 ? 9 : 25;
  const double products = instruction * plan.row_tiles * chunks * plan.batch_tiles;
  const double reading = 1.7 * sequences * chunks;
  const double partial = 0.3 * sequences * partial_stride(plan.row_tiles);
  const double cells = problem.backward ? 2000 : 1350;
  const double meeting = plan.partials == 1 ? 100 : 0;
  double clocks = passes * (weights + products + reading + partial + cells + meeting);
  // The way from block to block: every block reads the values of all blocks, and sectors of the L2 cache into which two
  // blocks write are slow.
  const int written = plan.units * problem.element_bytes;
  if (plan.cluster)
    clocks += 40 * plan.blocks;
  else if (plan.blocks > 1)
    clocks +=
        800 + 8 * segments * plan.blocks + (written < 32 ? 600 : 0) + (problem.backward && written < 64 ? 1800 : 0);
  const int64_t blocks = int64_t(plan.blocks) * plan.groups * plan.directions;
  const double waves = plan.cluster ? static_cast<double>(divide_up(blocks, kClusterBlocks)) : 1;
  return clocks * waves * static_cast<double>(problem.directions / plan.directions) / kClock;
}

// These constants are assumed, not measured: a step takes two launches, which took cuDNN 14 us on the one host seen,
// reads the weights from the L2 cache, computes products at about a third of the peak, and reads and writes what the
// cell needs.
double estimate_stepwise(const PersistentProblem& problem) {
  constexpr double kLaunches = 14, kBytes = 5e6;  // microseconds; bytes in a microsecond
  const double rate = problem.element_bytes == 2 ? 250e6 : problem.allow_tf32 ? 125e6 : 40e6;
  const double states = static_cast<double>(problem.batch) * static_cast<double>(problem.hidden_size);
  const double weights = static_cast<double>(problem.gates * problem.hidden_size * problem.hidden_size);
  const double reading = weights * problem.element_bytes / kBytes;
  const double products = 2 * weights * static_cast<double>(problem.batch) / rate;
  const double cells = states * (problem.backward ? 64 : 48) / kBytes;
  return static_cast<double>(problem.directions) * (kLaunches + (reading > products ? reading : products) + cells);
}

namespace {

// Returns why no plan can be made for a problem whatever the GPU has, or null.
const char* never_fits(const PersistentProblem& problem) {
  if (problem.element_bytes == 8) return "float64 has no persistent kernel";
  if (problem.projected) return "a projection has no persistent kernel";
  if (problem.one_step) return "a single step uses each weight once: there is nothing to keep on the chip";
  if (problem.hidden_size * problem.element_bytes % 16 != 0)
    return "hidden_size values are no multiple of 16 bytes, and padding them does not pay for so few steps, or so few "
           "units in half precision";
  return nullptr;
}

// Tries all tiles and numbers of chunks in registers for a plan's blocks, and keeps the best plan.
void divide_blocks(PersistentPlan plan, const PersistentProblem& problem, const Device& device,
                   const PlanOverride& plan_override, PersistentPlan& best, double& least) {
  for (plan.batch_tiles = 1; plan.batch_tiles <= 4; plan.batch_tiles *= 2)
    for (plan.chunks_in_registers = 0; plan.chunks_in_registers <= 4; ++plan.chunks_in_registers) {
      plan.partials = 2;
      if (shared_layout(plan, problem).total > device.shared_bytes) plan.partials = 1;
      const bool fits = is_instantiated(problem.gates, problem.backward, problem.element_bytes, plan.cluster,
                                        plan.row_tiles, plan.batch_tiles, plan.chunks_in_registers) &&
                        plan.units * plan.batch_tiles * kTileBatch <= kThreads * kUnitsPerThread &&
                        (plan.batch_tiles == 1 || plan.batch_tiles / 2 * kTileBatch < plan.sequences) &&
                        (plan.chunks_in_registers == 0 ||
                         plan.chunks_in_registers >= chunks_of_warp(problem.hidden_size, problem.element_bytes));
      if (!fits || !allowed_by(plan_override, plan) || shared_layout(plan, problem).total > device.shared_bytes)
        continue;
      const double time = estimate_step(plan, problem);
      if (best.blocks == 0 || time < least) best = plan, least = time;
    }
}

// Tries all plans that launch so many directions at once, and returns the best.
PersistentPlan choose_among(int64_t directions, const PersistentProblem& problem, const Device& device,
                            const PlanOverride& plan_override) {
  PersistentPlan best = {}, plan = {};
  double least = 0;
  plan.directions = static_cast<int32_t>(directions);
  for (plan.units = 8; plan.units <= 32; plan.units *= 2) {
    plan.blocks = static_cast<int32_t>(divide_up(problem.hidden_size, plan.units));
    plan.row_tiles =
        static_cast<int32_t>(divide_up(rows_of_units(problem.gates, problem.backward, plan.units), kTileRows));
    for (const bool cluster : {false, true}) {
      plan.cluster = cluster;
      if (cluster && (device.cluster < 2 || plan.blocks > device.cluster)) continue;
      if (!cluster && plan.blocks * directions > device.multiprocessors) continue;
      for (int64_t sequences = kTileBatch;; sequences += kTileBatch) {
        plan.groups = static_cast<int32_t>(divide_up(problem.batch, sequences));
        plan.sequences = static_cast<int32_t>(smaller(sequences, problem.batch));
        if (cluster || plan.blocks * plan.groups * directions <= device.multiprocessors)
          divide_blocks(plan, problem, device, plan_override, best, least);
        if (sequences >= problem.batch) break;
      }
    }
  }
  return best;
}

}  // namespace

int64_t padded_size(const PersistentProblem& problem, int64_t time, const PlanOverride& plan_override) {
  // A path that is asked for is taken wherever it can be.
  const bool repaid = time >= kStepsToPad || plan_override.path != Path::kAny;
  if (!repaid || stepwise_in_float32(problem.hidden_size, problem.element_bytes)) return problem.hidden_size;
  return round_up(problem.hidden_size, 16 / problem.element_bytes);
}

PersistentPlan choose_plan(const PersistentProblem& problem, const Device& device, const PlanOverride& plan_override) {
  if (never_fits(problem) != nullptr || plan_override.path == Path::kStepwise) return {};
  PersistentPlan best = choose_among(problem.directions, problem, device, plan_override);
  // One direction after the other, where both do not fit at once.
  if (best.blocks == 0 && problem.directions == 2) best = choose_among(1, problem, device, plan_override);
  // With a batch so large that a block works through many tiles in every step, the stepwise path is faster.
  const bool slow =
      best.blocks > 0 && plan_override.path == Path::kAny && estimate_step(best, problem) > estimate_stepwise(problem);
  return slow ? PersistentPlan{} : best;
}

const char* why_stepwise(const PersistentProblem& problem, const PlanOverride& plan_override) {
  if (const char* reason = never_fits(problem)) return reason;
  if (plan_override.path != Path::kAny) return "no plan agrees with the plan override";
  return "the recurrent weights do not fit into the shared memory of the GPU, or the batch is so large that the "
         "stepwise "
         "path takes less time";
}

}  // namespace fused_rnn::cuda
