// The choice of a plan: of all that fit, the one whose step takes the least time by an estimate whose constants were
// fitted to measurements; see benchmarks/NOTES.md.

#include "cuda/persistent_plan.h"

#include <initializer_list>

namespace fused_rnn::cuda {
namespace {

constexpr double kClock = 1.755e3;  // per microsecond
constexpr int kMostWarps = kPersistentThreads / 32;

double larger(double a, double b) { return a > b ? a : b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t rows_per_unit(const PersistentProblem& problem) { return problem.backward ? 1 : problem.gates; }

// Sets how warps and registers share a block's work for `row_warps` times `depth_warps` warps; false if they cannot.
bool divide_block(PersistentPlan& plan, const PersistentProblem& problem, int row_warps, int depth_warps,
                  int batch_tiles) {
  const int64_t tiles = divide_up(rows_per_unit(problem) * plan.units, kTileRows);
  const int64_t row_tiles = divide_up(tiles, row_warps);
  plan.row_warps = row_warps;
  plan.depth_warps = depth_warps;
  plan.row_tiles = static_cast<int32_t>(row_tiles);
  plan.batch_tiles = batch_tiles;
  const int64_t cells = int64_t(plan.units) * batch_tiles * kTileBatch;
  return is_instantiated(row_tiles, batch_tiles, problem.backward) && row_warps <= tiles &&
         cells <= int64_t(row_warps) * depth_warps * 32 * kCellsPerThread;
}

bool wished(const Wish& wish, const PersistentPlan& plan) {
  return (wish.path == Path::kAny || (wish.path == Path::kCluster) == plan.cluster) &&
         (wish.blocks == 0 || wish.blocks == plan.blocks) && (wish.groups == 0 || wish.groups == plan.groups) && (wish.teams == 0 || wish.teams == plan.teams) &&
         (wish.depth_warps == 0 || wish.depth_warps == plan.depth_warps) &&
         (wish.batch_tiles == 0 || wish.batch_tiles == plan.batch_tiles);
}

}  // namespace

double estimate_step(const PersistentPlan& plan, const PersistentProblem& problem) {
  const SharedLayout shared = shared_layout(plan, problem);
  const double tiles = plan.row_warps * plan.row_tiles, sequences = plan.batch_tiles * kTileBatch;
  const double passes = static_cast<double>(divide_up(plan.sequences, plan.batch_tiles * kTileBatch));
  // Clocks of one pass of one team: reading weights, matrix instructions, reading what was handed on, partial sums.
  const double weights = tiles * shared.chunks * 1024 / 128;
  const double instruction = problem.element_bytes == 2 ? 2 : problem.exact ? 9 : 3;
  const double products = tiles * shared.chunks * 2 * plan.batch_tiles * instruction;
  const double values = sequences * shared.chunks * kChunkBytes * plan.row_warps;
  const double blocks = static_cast<double>(plan.blocks) * plan.groups * static_cast<double>(problem.directions);
  const double reading = plan.cluster ? values / 128 : larger(values / 40, values * blocks / 2500);
  const double partial = sequences * shared.partial_stride * plan.depth_warps * 8 / 128;
  const double busy = larger(larger(weights, products), reading) + partial;
  const double pass = busy + 600;
  const double exchange = plan.blocks == 1 ? 60 : plan.cluster ? 700 + 20 * plan.blocks : 1500;
  // Teams hide behind each other, and on a grid so do passes.
  const double alone = plan.cluster ? passes * pass + exchange : larger(passes * pass, pass + exchange);
  const double waves = plan.cluster ? static_cast<double>(divide_up(static_cast<int64_t>(blocks), 120)) : 1;
  return larger(alone, plan.teams * passes * busy) * waves / kClock;
}

namespace {

// Tries all ways to share a block's work among its warps; plan has blocks, units and the sequences of a group.
void divide_blocks(const PersistentPlan& group, const PersistentProblem& problem, const Device& device,
                   const Wish& wish, PersistentPlan& best, double& least) {
  PersistentPlan plan = group;
  for (plan.teams = 1; plan.teams <= 4; plan.teams *= 2) {
    plan.sequences = static_cast<int32_t>(divide_up(group.sequences, plan.teams));
    if (plan.teams > 1 && plan.sequences % kTileBatch != 0) continue;
    for (int row_warps = 1; row_warps <= kMostWarps; row_warps *= 2)
      for (int depth_warps = 1; row_warps * depth_warps * plan.teams <= kMostWarps; depth_warps *= 2)
        for (const int batch_tiles : {1, 2, 4}) {
          if (batch_tiles > 1 && batch_tiles / 2 * kTileBatch >= plan.sequences) continue;
          if (!divide_block(plan, problem, row_warps, depth_warps, batch_tiles) || !wished(wish, plan) ||
              shared_layout(plan, problem).total > device.shared_bytes)
            continue;
          const double time = estimate_step(plan, problem);
          if (best.blocks == 0 || time < least) best = plan, least = time;
        }
  }
}

}  // namespace

PersistentPlan choose_plan(const PersistentProblem& problem, const Device& device, const Wish& wish) {
  PersistentPlan best = {};
  if (problem.hidden_size * problem.element_bytes % 16 != 0 || wish.path == Path::kPlain) return best;
  double least = 0;
  PersistentPlan plan = {};
  const int64_t most_units = smaller(problem.hidden_size, kPersistentThreads * kCellsPerThread / kTileBatch);
  for (plan.units = 1; plan.units <= most_units; ++plan.units) {
    plan.blocks = static_cast<int32_t>(divide_up(problem.hidden_size, plan.units));
    if (plan.units > 1 && plan.units < most_units &&
        plan.blocks == static_cast<int32_t>(divide_up(problem.hidden_size, plan.units - 1)))
      continue;  // the same number of blocks with a shorter last one
    for (const bool cluster : {false, true}) {
      plan.cluster = cluster;
      if (cluster ? plan.blocks > device.cluster : plan.blocks * problem.directions > device.multiprocessors) continue;
      for (int64_t sequences = kTileBatch;; sequences += kTileBatch) {
        plan.groups = static_cast<int32_t>(divide_up(problem.batch, sequences));
        plan.sequences = static_cast<int32_t>(smaller(sequences, problem.batch));
        if (cluster || plan.blocks * plan.groups * problem.directions <= device.multiprocessors)
          divide_blocks(plan, problem, device, wish, best, least);
        if (sequences >= problem.batch) break;
      }
    }
  }
  return best;
}

}  // namespace fused_rnn::cuda
