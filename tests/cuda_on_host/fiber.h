// One CUDA thread as a fiber: a stack of its own, and where the thread is; see fibers.h.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include "fibers.h"

namespace fused_rnn::cuda::host {

constexpr size_t kStack = 64 * 1024;  // of a fiber

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
