#include "ops/threads.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <algorithm>
#include <atomic>

namespace fused_rnn::ops {
namespace {

std::atomic<int64_t> assumed_processors = 0;

// Returns how many processors the process might use at the first call. To ask each time would cost a system call.
int64_t processors() {
  static const int64_t available = omp_get_num_procs();
  const int64_t assumed = assumed_processors.load(std::memory_order_relaxed);
  return assumed > 0 ? assumed : available;
}

}  // namespace

int64_t most_threads() { return std::min<int64_t>(at::get_num_threads(), processors()); }

void set_processors(int64_t processors) { assumed_processors = processors; }

}  // namespace fused_rnn::ops
