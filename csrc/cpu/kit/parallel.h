// Threads for kernels: they run in torch's own OpenMP pool, get equal shares of the work, and synchronise by a barrier
// that is cheap enough for every time step.

#pragma once

#include <omp.h>

#include <cstdint>

#include "cpu/kit/waiting.h"

namespace fused_rnn::cpu {
namespace {

inline constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline constexpr int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// A half-open range of work.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool contains(int64_t i) const { return begin <= i && i < end; }
};

// Returns the items of part `index`, where `count` items are divided into `parts` parts at multiples of `grain`.
inline Range share(int64_t count, int64_t index, int64_t parts, int64_t grain = 1) {
  const int64_t grains = divide_up(count, grain);
  const int64_t begin = grains * index / parts * grain;
  const int64_t end = grains * (index + 1) / parts * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

// Calls body(begin of a part, begin of the next) for each part of `range` in serpentine order: upwards in even rounds
// and downwards in odd ones, so that a round starts with the parts that the last round left in the caches. For the last
// part of a round, which has no next, body gets its own begin twice.
template <typename Body>
inline void serpentine(Range range, int64_t grain, int64_t round, const Body& body) {
  const int64_t parts = divide_up(range.size(), grain);
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t next = i + 1 < parts ? i + 1 : i;
    const auto begin = [&](int64_t part) { return range.begin + (round % 2 == 0 ? part : parts - 1 - part) * grain; };
    body(begin(i), begin(next));
  }
}

// Runs body(thread, number of threads) on up to `threads` threads at once; inside another parallel region, on one. The
// body must not throw, so it allocates nothing; see scratch.h.
template <typename Body>
inline void parallel(int64_t threads, const Body& body) {
  if (threads <= 1 || omp_in_parallel()) {
    body(int64_t{0}, int64_t{1});
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(threads))
  body(int64_t{omp_get_thread_num()}, int64_t{omp_get_num_threads()});
}

// A barrier for the threads of a team. They spin for a short time and then sleep, since the thread that they wait for,
// or another program, may need the processor. A thread sleeps at once if it waits for one that last ran on its own
// processor.
class Barrier {
 public:
  // Waits until `team` threads have called this; every thread of the team passes the same `team` and its own `rank`.
  void wait(int64_t team, int64_t rank) {
    if (team == 1) return;
    const int32_t round = __atomic_load_n(&round_, __ATOMIC_RELAXED);
    const int here = processor();
    if (rank < kPlaces) __atomic_store_n(&places_[rank], place(here, round), __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == team) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      // In one order with the operations below: either this thread sees that another one sleeps, or that one sees the
      // new round before it sleeps.
      __atomic_store_n(&round_, round + 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&sleeping_, __ATOMIC_SEQ_CST) > 0) wake_all(&round_);
      return;
    }
    const int spins = awaits_thread_of(here, round, team) ? 0 : kSpins;
    for (int spin = 0; spin < spins; ++spin) {
      if (__atomic_load_n(&round_, __ATOMIC_ACQUIRE) != round) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    __atomic_add_fetch(&sleeping_, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&round_, __ATOMIC_SEQ_CST) == round) sleep_while(&round_, round);
    __atomic_sub_fetch(&sleeping_, 1, __ATOMIC_RELAXED);
  }

 private:
  // A few times as long as it takes to wake a thread, and as the parts of a step differ.
  static constexpr int kSpins = 4000;
  // How many threads of a team are known by where they run.
  static constexpr int64_t kPlaces = 28;

  // Where a thread was when it arrived in a round, as one number, which is never 0; whether the round is even tells it
  // from the round before.
  static int16_t place(int processor, int32_t round) {
    return static_cast<int16_t>((processor + 1) << 1 | (round & 1));
  }

  // Whether a thread that has not arrived in this round was on this processor when it arrived in the round before.
  bool awaits_thread_of(int processor, int32_t round, int64_t team) const {
    if (processor < 0) return false;
    const int16_t missing = place(processor, round + 1);
    for (int64_t rank = 0; rank < smaller(team, kPlaces); ++rank)
      if (__atomic_load_n(&places_[rank], __ATOMIC_RELAXED) == missing) return true;
    return false;
  }

  // A thread that arrives writes to the first of these cache lines, and one that waits polls the second.
  alignas(64) int32_t arrived_ = 0;
  int32_t sleeping_ = 0;
  int16_t places_[kPlaces] = {};
  alignas(64) int32_t round_ = 0;
};

}  // namespace
}  // namespace fused_rnn::cpu
