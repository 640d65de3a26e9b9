// One CUDA thread as a fiber: a stack of its own, and how far the thread has come; see fibers.h.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "fibers.h"

namespace fused_rnn::cuda::host {

constexpr size_t kStack = 64 * 1024;  // of a fiber

// Stacks for the fibers of a block. They are kept for later blocks, since the first use of each page of new memory asks
// the operating system for it.
class Stacks {
 public:
  explicit Stacks(size_t count) : bytes_(count * kStack) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& kept) { return kept.bytes == bytes_; });
    if (found == kept_.end()) {
      memory_.reset(new char[bytes_]);
    } else {
      memory_ = std::move(found->memory);
      kept_.erase(found);
    }
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(memory_.get(), bytes_);
#endif
  }
  ~Stacks() {
    constexpr size_t kMostKept = 16;
    const std::lock_guard lock(mutex_);
    if (kept_.size() == kMostKept) kept_.erase(kept_.begin());
    kept_.push_back({bytes_, std::move(memory_)});
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  char* at(size_t fiber) const { return memory_.get() + fiber * kStack; }

 private:
  struct Kept {
    size_t bytes;
    std::unique_ptr<char[]> memory;
  };
  static inline std::mutex mutex_;
  static inline std::vector<Kept> kept_;

  size_t bytes_;
  std::unique_ptr<char[]> memory_;
};

// How far one CUDA thread has come.
class Fiber {
 public:
  void prepare(char* stack, void (*entry)()) {
    stack_ = stack, bytes_ = kStack, started_ = false;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = kStack;
    makecontext(&context_, entry, 0);
  }

  // Goes on with `to` until something goes on with this one. setjmp, unlike swapcontext, asks nothing of the operating
  // system, which would take most of a run's time.
  void switch_to(Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.bytes_);
#endif
    if (_setjmp(jump_) == 0) {
      if (to.started_) _longjmp(to.jump_, 1);
      to.started_ = true;
      setcontext(&to.context_);
    }
    arrive(nullptr);
  }

  // Must be called on arrival. The first one comes from `origin`, whose stack is not known before.
  void arrive([[maybe_unused]] Fiber* origin) {
#ifdef __SANITIZE_ADDRESS__
    const void* stack = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &stack, &bytes);
    if (origin && !origin->stack_) origin->stack_ = static_cast<const char*>(stack), origin->bytes_ = bytes;
#endif
  }

  const Place* waits_at = nullptr;

 private:
  jmp_buf jump_;
  ucontext_t context_;
  bool started_ = true;
  [[maybe_unused]] const char* stack_ = nullptr;
  [[maybe_unused]] size_t bytes_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;
};

}  // namespace fused_rnn::cuda::host
