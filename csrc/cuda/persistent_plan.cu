// The choice of a plan: of all that fit, the one whose step takes the least time by an estimate whose constants were
// fitted to measurements; see benchmarks/NOTES.md.

#include "cuda/persistent_plan.h"

#include <initializer_list>

namespace fused_rnn::cuda {
namespace {

constexpr double kClock = 1.755e3;  // per microsecond

double larger(double a, double b) { return a > b ? a : b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t rows_per_unit(const PersistentProblem& problem) { return problem.backward ? 1 : problem.gates; }

bool wished(const Wish& wish, const PersistentPlan& plan) {
  return (wish.path == Path::kAny || (wish.path == Path::kCluster) == plan.cluster) &&
         (wish.blocks == 0 || wish.blocks == plan.blocks) && (wish.groups == 0 || wish.groups == plan.groups) &&
         (wish.batch_tiles == 0 || wish.batch_tiles == plan.batch_tiles);
}

}  // namespace

double estimate_step(const PersistentPlan& plan, const PersistentProblem& problem) {
  const SharedLayout shared = shared_layout(plan, problem);
  const double chunks = static_cast<double>(shared.chunks) * (problem.backward ? problem.gates : 1);
  const double sequences = plan.batch_tiles * kTileBatch;
  const double passes = static_cast<double>(divide_up(plan.sequences, plan.batch_tiles * kTileBatch));
  // Clocks of one pass: reading weights, matrix instructions, reading what was handed on, partial sums.
  const double weights = plan.row_tiles * chunks * 1024 / 128;
  const double instruction = problem.element_bytes == 2 ? 2 : problem.exact ? 9 : 3;
  const double products = plan.row_tiles * chunks * 2 * plan.batch_tiles * instruction;
  const double values = sequences * chunks * kChunkBytes;
  const double blocks = static_cast<double>(plan.blocks) * plan.groups * static_cast<double>(problem.directions);
  const double reading = plan.cluster ? values / 64 : larger(values / 40, values * blocks / 2500);
  const double partial = sequences * partial_stride(plan.row_tiles) * kWarps * 8 / 128;
  const double pass = larger(larger(weights, products), reading) + partial + 700;
  const double exchange = plan.blocks == 1 ? 60 : plan.cluster ? 500 + 20 * plan.blocks : 1500;
  // Passes hide the way from block to block behind each other.
  const double clocks = larger(passes * pass, pass + exchange);
  const double waves = plan.cluster ? static_cast<double>(divide_up(static_cast<int64_t>(blocks), 120)) : 1;
  return clocks * waves / kClock;
}

PersistentPlan choose_plan(const PersistentProblem& problem, const Device& device, const Wish& wish) {
  PersistentPlan best = {};
  if (problem.hidden_size * problem.element_bytes % 16 != 0 || wish.path == Path::kPlain) return best;
  double least = 0;
  PersistentPlan plan = {};
  const int64_t most_units = 2 * kThreads / kTileBatch;
  for (plan.units = 2; plan.units <= most_units; plan.units += 2) {
    plan.blocks = static_cast<int32_t>(divide_up(problem.hidden_size, plan.units));
    // A shorter last block only where fewer units for each would take another block.
    if (plan.units > 2 && plan.blocks == static_cast<int32_t>(divide_up(problem.hidden_size, plan.units - 2))) continue;
    plan.row_tiles = static_cast<int32_t>(divide_up(rows_per_unit(problem) * plan.units, kTileRows));
    for (const bool cluster : {false, true}) {
      plan.cluster = cluster;
      if (cluster ? plan.blocks > device.cluster : plan.blocks * problem.directions > device.multiprocessors) continue;
      for (int64_t sequences = kTileBatch;; sequences += kTileBatch) {
        plan.groups = static_cast<int32_t>(divide_up(problem.batch, sequences));
        plan.sequences = static_cast<int32_t>(smaller(sequences, problem.batch));
        for (const int batch_tiles : {1, 2, 4}) {
          plan.batch_tiles = batch_tiles;
          const bool fits = (cluster || plan.blocks * plan.groups * problem.directions <= device.multiprocessors) &&
                            is_instantiated(plan.row_tiles, batch_tiles, problem.backward) &&
                            plan.units * batch_tiles * kTileBatch <= kThreads * kUnitsPerThread &&
                            (batch_tiles == 1 || batch_tiles / 2 * kTileBatch < plan.sequences);
          if (!fits || !wished(wish, plan) || shared_layout(plan, problem).total > device.shared_bytes) continue;
          const double time = estimate_step(plan, problem);
          if (best.blocks == 0 || time < least) best = plan, least = time;
        }
        if (sequences >= problem.batch) break;
      }
    }
  }
  return best;
}

}  // namespace fused_rnn::cuda
