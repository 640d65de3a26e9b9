// How the steps of a recurrent layer are divided among threads and ordered in time, in the forward and the backward
// loop.

#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/plan.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// The registers of this instruction set, for which plans are chosen.
template <typename T>
inline constexpr Registers kRegisters = {kLanes<T>, kMaxRows};
static_assert(kRegisters<float>.panel() == kPanel<float>);

// The part of a layer that one thread computes. A team of threads computes all steps of its directions and batch rows;
// its threads divide the hidden units among them and synchronise after each step.
struct ThreadWork {
  int64_t first_direction, direction_stride;
  Range batch;
  int64_t rank, team_size;  // of the thread in its team
};

// How many bytes of weights, which are read again at every step, a core's second-level cache is assumed to hold.
inline constexpr int64_t kCacheBytes = 768 << 10;

// Divides the work by directions first, which need no synchronisation at all; then by batch rows, if each thread gets
// enough of them and the weights fit its cache, unless they are read only once; then by hidden units. The layer's
// result does not depend on the choice.
inline ThreadWork work_of_thread(const RecurrentSizes& sizes, int64_t weight_bytes, int64_t thread, int64_t threads) {
  const int64_t direction_teams = sizes.directions == 2 && threads >= 2 ? 2 : 1;
  const int64_t left = threads / direction_teams;
  const bool by_batch = sizes.steps.time > 1 && sizes.steps.batch_sizes == nullptr && weight_bytes <= kCacheBytes &&
                        sizes.steps.batch >= left * (kMaxRows - 2);
  const int64_t batch_teams = by_batch ? left : 1;
  const int64_t team = left / batch_teams;
  const int64_t index = thread / direction_teams;
  if (index >= batch_teams * team) return {2, 1, {0, 0}, 0, 1};  // a surplus thread, which has nothing to do
  return {thread % direction_teams, direction_teams, share(sizes.steps.batch, index / team, batch_teams), index % team,
          team};
}

// One step of a direction, whose previous step is t - 1 in the first direction and t + 1 in the second.
struct Step {
  int64_t t;
  int64_t rows;            // the number of batch rows that have this step
  int64_t first_row;       // the index of the first of them in arrays of all steps' rows
  int64_t previous_rows;   // how many of them, from the first on, have a previous step; the others begin here
  int64_t previous_first;  // first_row of the previous step
};

// Returns step number `index` of a direction, counted in the order of the recurrence.
inline Step step_at(const Steps& steps, int64_t direction, int64_t index) {
  const int64_t t = direction == 0 ? index : steps.time - 1 - index;
  const int64_t previous_t = direction == 0 ? t - 1 : t + 1;
  const bool has_previous = previous_t >= 0 && previous_t < steps.time;
  const int64_t rows = steps.batch_size(t);
  const int64_t previous_rows = has_previous ? steps.batch_size(previous_t) : 0;
  return {t, rows, steps.first_row(t), smaller(previous_rows, rows), has_previous ? steps.first_row(previous_t) : 0};
}

// Whether the states of any of the given batch rows are replaced before a step.
inline bool any_reset(const Resets& resets, int64_t direction, const Step& step, Range batch) {
  if (!resets.begins) return false;
  const bool* first = resets.begins + direction * resets.rows + step.first_row + batch.begin;
  return std::memchr(first, 1, static_cast<size_t>(batch.size())) != nullptr;
}

inline Range intersect(Range a, Range b) {
  const int64_t begin = larger(a.begin, b.begin);
  return {begin, larger(begin, smaller(a.end, b.end))};
}

}  // namespace
}  // namespace fused_rnn::cpu
