// What threads that wait ask of the operating system. Sleeping and waking are the operations of
// std::atomic<int>::wait(), whose templates may not be compiled into kernels: they have weak symbols; see
// docs/design.md.

#pragma once

#include <sched.h>

#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fused_rnn::cpu {
namespace {

// Sleeps while *number is `value`, until wake_all() is called. It may also return earlier.
inline void sleep_while(const int32_t* number, int32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, number, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  sched_yield();
#endif
}

// Returns the number of the processor that runs the thread; -1 where the system does not tell.
inline int processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Wakes all threads that sleep because of *number, which has been changed.
inline void wake_all(const int32_t* number) {
#if defined(__linux__)
  syscall(SYS_futex, number, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

}  // namespace
}  // namespace fused_rnn::cpu
