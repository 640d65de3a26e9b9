// The choice of a plan: on each path, of all plans that fit, the one that should be fastest among them; and of these
// and the stepwise path the one whose step takes the least time by the estimates of estimate.h.

#include "cuda/persistent/estimate.h"
#include "cuda/persistent/plan.h"

namespace fused_rnn::cuda {
namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

bool allowed_by(const PlanOverride& plan_override, const PersistentPlan& plan) {
  return (plan_override.path == Path::kAny || (plan_override.path == Path::kCluster) == plan.cluster) &&
         (plan_override.split == 0 || plan_override.split == plan.split) &&
         (plan_override.blocks == 0 || plan_override.blocks == plan.blocks) &&
         (plan_override.groups == 0 || plan_override.groups == plan.groups) &&
         (plan_override.batch_tiles == 0 || plan_override.batch_tiles == plan.batch_tiles) &&
         (plan_override.chunks_in_registers < 0 || plan_override.chunks_in_registers == plan.chunks_in_registers);
}

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

// The best plan of one path so far.
struct Best {
  PersistentPlan plan = {};
  double order = 0;
};

// Returns whether a plan's blocks fit into shared memory with the fewest tiles and buffers. If not, they do not fit
// with more sequences either.
bool may_fit(PersistentPlan plan, const PersistentProblem& problem, const Device& device) {
  plan.batch_tiles = 1, plan.chunks_in_registers = 0, plan.partials = 1;
  return shared_layout(plan, problem).total <= device.shared_bytes;
}

// Tries all tiles and numbers of chunks in registers for a plan's blocks, and keeps the best plan.
void divide_blocks(PersistentPlan plan, const PersistentProblem& problem, const Device& device,
                   const PlanOverride& plan_override, Best& best) {
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
      const double order = order_within_path(plan, problem, device);
      if (best.plan.blocks == 0 || order < best.order) best = {plan, order};
    }
}

// Returns how many groups the plan's blocks may make up at most; 0 if not even one.
int64_t most_groups(const PersistentPlan& plan, const PersistentProblem& problem, const Device& device) {
  const int64_t blocks = int64_t(plan.blocks) * plan.directions;
  // All blocks of a grid run at once. Clusters may wait for others to end, but not where there is a limit.
  int64_t most = plan.cluster ? problem.batch : device.multiprocessors / blocks;
  if (plan.cluster && (plan.blocks > kMostClusterBlocks || device.clusters[plan.blocks] == 0)) return 0;
  if (device.most_blocks > 0) most = smaller(most, device.most_blocks / blocks);
  return most;
}

// Returns the best plan of one path that launches so many directions at once.
PersistentPlan best_of_path(bool cluster, int64_t directions, const PersistentProblem& problem, const Device& device,
                            const PlanOverride& plan_override) {
  Best best;
  PersistentPlan plan = {};
  plan.cluster = cluster;
  plan.directions = static_cast<int32_t>(directions);
  for (plan.units = 8; plan.units <= 32; plan.units *= 2) {
    plan.blocks = static_cast<int32_t>(divide_up(problem.hidden_size, plan.units));
    plan.row_tiles =
        static_cast<int32_t>(divide_up(rows_of_units(problem.gates, problem.backward, plan.units), kTileRows));
    const int64_t groups = most_groups(plan, problem, device);
    if (groups == 0) continue;
    const int64_t fewest = problem.batch > groups ? divide_up(problem.batch, groups) : 1;
    for (int64_t sequences = round_up(fewest, kTileBatch);; sequences += kTileBatch) {
      plan.groups = static_cast<int32_t>(divide_up(problem.batch, sequences));
      plan.sequences = static_cast<int32_t>(smaller(sequences, problem.batch));
      if (!may_fit(plan, problem, device)) break;
      divide_blocks(plan, problem, device, plan_override, best);
      if (sequences >= problem.batch) break;
    }
  }
  return best.plan;
}

// Returns the plan, of those in which warpgroups multiply, that should take the least time; one with blocks == 0 if
// none fits.
PersistentPlan best_of_warpgroups(int64_t directions, const PersistentProblem& problem, const Device& device,
                                  const PlanOverride& plan_override) {
  Best best;
  if (!device.hopper) return best.plan;
  PersistentPlan plan = {};
  plan.directions = static_cast<int32_t>(directions);
  plan.units = kWarpgroupUnits;
  plan.batch_tiles = kWarpgroupSequences / kTileBatch;
  plan.row_tiles =
      static_cast<int32_t>(divide_up(rows_of_units(problem.gates, problem.backward, plan.units), kTileRows));
  for (plan.split = 1; plan.split <= 4; plan.split *= 2) {
    if (!is_warpgroup_instantiated(problem.gates, problem.backward, problem.element_bytes, plan.split)) continue;
    // Blocks past the last unit multiply their part for the others of their cluster.
    plan.blocks = static_cast<int32_t>(round_up(divide_up(problem.hidden_size, plan.units), plan.split));
    int64_t at_once = plan.split == 1 ? device.multiprocessors : int64_t(device.clusters[plan.split]) * plan.split;
    if (device.most_blocks > 0) at_once = smaller(at_once, device.most_blocks);
    const int64_t groups = at_once / (int64_t(plan.blocks) * directions);
    if (groups == 0) continue;
    const int64_t fewest = problem.batch > groups ? divide_up(problem.batch, groups) : 1;
    const int64_t sequences = round_up(fewest, kWarpgroupSequences);
    plan.groups = static_cast<int32_t>(divide_up(problem.batch, sequences));
    plan.sequences = static_cast<int32_t>(smaller(sequences, problem.batch));
    plan.partials = 2;
    if (plan.split == 1 && shared_layout(plan, problem).total > device.shared_bytes) plan.partials = 1;
    if (!allowed_by(plan_override, plan) || shared_layout(plan, problem).total > device.shared_bytes) continue;
    const double order = order_of_warpgroups(plan, problem);
    if (best.plan.blocks == 0 || order < best.order) best = {plan, order};
  }
  return best.plan;
}

// Returns the better one of the best plans of both paths.
PersistentPlan choose_among(int64_t directions, const PersistentProblem& problem, const Device& device,
                            const PlanOverride& plan_override) {
  const PersistentPlan grid = best_of_path(false, directions, problem, device, plan_override);
  const PersistentPlan cluster = best_of_path(true, directions, problem, device, plan_override);
  if (grid.blocks == 0 || cluster.blocks == 0) return grid.blocks == 0 ? cluster : grid;
  return estimate_step(cluster, problem, device) < estimate_step(grid, problem, device) ? cluster : grid;
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
  const auto choose = plan_override.path == Path::kWarpgroup ? best_of_warpgroups : choose_among;
  PersistentPlan best = choose(problem.directions, problem, device, plan_override);
  // One direction after the other, where both do not fit at once.
  if (best.blocks == 0 && problem.directions == 2) best = choose(1, problem, device, plan_override);
  // With a batch so large that a block works through many tiles in every step, the stepwise path is faster.
  const bool slow = best.blocks > 0 && plan_override.path == Path::kAny &&
                    estimate_step(best, problem, device) > estimate_stepwise(problem);
  return slow ? PersistentPlan{} : best;
}

const char* why_stepwise(const PersistentProblem& problem, const PlanOverride& plan_override) {
  if (const char* reason = never_fits(problem)) return reason;
  if (plan_override.path != Path::kAny) return "no plan agrees with the plan override";
  return "the recurrent weights do not fit into the shared memory of the GPU, or the batch is so large that the "
         "stepwise path takes less time";
}

}  // namespace fused_rnn::cuda
