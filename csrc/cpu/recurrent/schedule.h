// What the forward and the backward loop over a recurrent layer share: which thread does what, and in which order.

#pragma once

#include <cstdint>

#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/plan.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// What plans are chosen for on this instruction set.
template <typename T>
inline constexpr Registers kRegisters = {kLanes<T>, kMaxRows};
static_assert(kRegisters<float>.panel() == kPanel<float>);

// Where a thread stands among those that work on a layer. A team walks through the steps of its directions and its
// batch rows; its members share out the hidden units and meet after each step.
struct Member {
  int64_t first_direction, direction_stride;
  Range batch;
  int64_t index, team;
};

// How much of a core's second-level cache weights may take that every batch row needs at every step.
inline constexpr int64_t kCacheBytes = 768 << 10;

// Shares out directions first, which need no meeting at all; then batch rows, if each thread gets enough of them and
// the weights fit its cache; then hidden units. The result of the layer does not depend on this.
inline Member assign(const RecurrentSizes& sizes, int64_t weight_bytes, int64_t thread, int64_t threads) {
  const int64_t direction_teams = sizes.directions == 2 && threads >= 2 ? 2 : 1;
  const int64_t left = threads / direction_teams;
  const bool by_batch =
      sizes.steps.batch_sizes == nullptr && weight_bytes <= kCacheBytes && sizes.steps.batch >= left * (kMaxRows - 2);
  const int64_t batch_teams = by_batch ? left : 1;
  const int64_t team = left / batch_teams;
  const int64_t index = thread / direction_teams;
  if (index >= batch_teams * team) return {2, 1, {0, 0}, 0, 1};  // a thread too many
  return {thread % direction_teams, direction_teams, share(sizes.steps.batch, index / team, batch_teams), index % team,
          team};
}

// One step of a direction in the order of the recurrence.
struct Step {
  int64_t t;
  int64_t rows;            // batch rows of this step
  int64_t first_row;       // of step t in arrays of all rows
  int64_t previous_rows;   // how many of them have a step before; the others start here
  int64_t previous_first;  // first row of the step before
};

// Returns step number `index` of a direction.
inline Step step_at(const Steps& steps, int64_t direction, int64_t index) {
  const int64_t t = direction == 0 ? index : steps.time - 1 - index;
  const int64_t before = direction == 0 ? t - 1 : t + 1;
  const bool has_before = before >= 0 && before < steps.time;
  const int64_t rows = steps.batch_size(t);
  const int64_t rows_before = has_before ? steps.batch_size(before) : 0;
  return {t, rows, steps.first_row(t), smaller(rows_before, rows), has_before ? steps.first_row(before) : 0};
}

inline Range intersect(Range a, Range b) {
  const int64_t begin = larger(a.begin, b.begin);
  return {begin, larger(begin, smaller(a.end, b.end))};
}

}  // namespace
}  // namespace fused_rnn::cpu
