// How the CPU runs a recurrent layer, chosen from its sizes alone. The plan is a value, which can be shown and tested
// without running anything. The thresholds are measured; see docs/notes/recurrent-cpu.md.

#pragma once

#include <cstdint>

#include "cells/cells.h"
#include "cpu/kit/parallel.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// The vector registers of an instruction set, for the type of the computation.
struct Registers {
  int64_t lanes;     // values in a vector
  int64_t max_rows;  // rows of the largest tile; see kit/tile.h

  constexpr int64_t panel() const { return 2 * lanes; }
};

// How the weights of a step are read.
enum class WeightUse {
  kInPlace,       // unpacked, as dot products: for calls with too few rows to repay packing
  kTransposed,    // in place too, with the batch rows as columns: for a layer of one step and more rows
  kPackedBefore,  // packed before the first step
  kFrozen,        // packed before the call, once for many
};

struct ForwardPlan {
  WeightUse weights;
  bool input_first;     // whether the product with the input is computed for all steps at once, before the first step
  int64_t block_units;  // hidden units whose weights are packed together
  int64_t threads;
};

struct BackwardPlan {
  bool weights_in_place;  // whether weight_hh is read unpacked
  int64_t threads;
};

// Packing pays only if enough rows use the weights. In a layer of several steps, which packs all weights first, the
// number of rows needed grows with the length of the sums: unpacked weights are multiplied as dot products, of which a
// short one spends most of its time on the final addition across the lanes of a vector.
constexpr WeightUse weight_use(const RecurrentSizes& sizes, Registers registers) {
  const int64_t time = sizes.steps.time;
  if (time == 1) return sizes.steps.batch <= 2 * registers.max_rows ? WeightUse::kInPlace : WeightUse::kTransposed;
  const int64_t batch = larger(sizes.steps.batch, 4), depth = sizes.input_size + sizes.output_size;
  const int64_t most = depth < 128 ? 4 : depth > 512 ? 16 : depth / 32;
  return time * batch <= most ? WeightUse::kInPlace : WeightUse::kPackedBefore;
}

// How many threads pay for a layer with `work` multiply-adds in a step of a direction. Threads synchronise after each
// step, so each of them needs enough work in a step to repay that, and enough in all steps to repay its start.
constexpr int64_t useful_threads(const RecurrentSizes& sizes, int64_t work) {
  constexpr int64_t kWorthAMeeting = 1 << 14, kWorthAStart = 1 << 18;
  const int64_t worth =
      smaller(sizes.directions * work / kWorthAMeeting, sizes.directions * work * sizes.steps.time / kWorthAStart);
  return smaller(sizes.threads, 1 + worth);
}

// How many hidden units' weights are packed together: a panel, or only a vector if the layer has few units for each
// thread.
constexpr int64_t block_units(const RecurrentSizes& sizes, Registers registers) {
  const bool few = sizes.threads > 1 && sizes.hidden_size < 4 * sizes.threads * registers.panel();
  return few ? registers.lanes : registers.panel();
}

// The number of batch rows from which on the product with the input is computed within each step.
inline constexpr int64_t kFusedRows = 4;

constexpr ForwardPlan plan_forward(const cells::Description& cell, const RecurrentSizes& sizes, Registers registers) {
  const WeightUse weights = weight_use(sizes, registers);
  const int64_t work = sizes.steps.batch * sizes.hidden_size * cell.gates * (sizes.output_size + sizes.input_size);
  return {weights, weights != WeightUse::kInPlace && sizes.steps.batch < kFusedRows, block_units(sizes, registers),
          useful_threads(sizes, work)};
}

// The plan of a frozen layer, whose weights were packed in blocks of `block_units` hidden units, and whose elements
// hold `terms` terms of a sum, which take the time of one.
constexpr ForwardPlan plan_frozen(const cells::Description& cell, const RecurrentSizes& sizes, int64_t block_units,
                                  int64_t terms) {
  const int64_t work = sizes.steps.batch * sizes.hidden_size * cell.gates * (sizes.output_size + sizes.input_size);
  return {WeightUse::kFrozen, sizes.steps.time > 1 && sizes.steps.batch < kFusedRows, block_units,
          useful_threads(sizes, work / terms)};
}

constexpr BackwardPlan plan_backward(const cells::Description& cell, const RecurrentSizes& sizes, Registers registers) {
  // The number of register tiles in all steps up to which packing weight_hh does not pay.
  constexpr int64_t kTilesInPlace = 8;
  return {sizes.steps.time * divide_up(sizes.steps.batch, 2 * registers.max_rows) <= kTilesInPlace,
          useful_threads(sizes, sizes.steps.batch * cell.gates * sizes.hidden_size * sizes.output_size)};
}

}  // namespace
}  // namespace fused_rnn::cpu
