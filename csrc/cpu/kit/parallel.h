// Threads for kernels: they run in torch's own OpenMP pool, get equal shares of the work, and synchronise by a barrier
// that is cheap enough for every time step.

#pragma once

#include <omp.h>
#include <sched.h>

#include <cstdint>

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

// Runs body(thread, number of threads) on up to `threads` threads at once; inside another parallel region, on one.
template <typename Body>
inline void parallel(int64_t threads, const Body& body) {
  if (threads <= 1 || omp_in_parallel()) {
    body(int64_t{0}, int64_t{1});
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(threads))
  body(int64_t{omp_get_thread_num()}, int64_t{omp_get_num_threads()});
}

// A barrier for the threads of a team. They spin for a bounded time and then yield, since other programs may need the
// processor for the thread that they wait for.
class Barrier {
 public:
  // Waits until `team` threads have called this; every thread of the team must pass the same `team`.
  void wait(int64_t team) {
    if (team == 1) return;
    const int64_t round = __atomic_load_n(&round_, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == team) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&round_, round + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int64_t spins = 0; __atomic_load_n(&round_, __ATOMIC_ACQUIRE) == round; ++spins) {
      if (spins < kSpins) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int64_t kSpins = 4000;
  // The two counters are on different cache lines, so that threads that poll round_ do not slow those that arrive.
  alignas(64) int64_t arrived_ = 0;
  alignas(64) int64_t round_ = 0;
};

}  // namespace
}  // namespace fused_rnn::cpu
