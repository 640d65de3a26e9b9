// Temporary memory for the duration of one call of a kernel. It is allocated before threads start: an allocation that
// fails throws an exception, which must not leave a parallel region, and for which the other threads would wait.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace fused_rnn::cpu {
namespace {

// Uninitialised memory for `count` values, aligned to cache lines and freed at the end of the scope.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    if (count == 0) return;
    const auto bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return data_; }

 private:
  T* data_ = nullptr;
};

// The same for each of several threads: `count` values that share no cache line with those of another thread.
template <typename T>
class ThreadScratch {
 public:
  ThreadScratch(int64_t threads, int64_t count)
      : stride_((count + kLine - 1) / kLine * kLine), memory_(threads * stride_) {}
  T* of(int64_t thread) { return memory_.data() + thread * stride_; }

 private:
  static constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  int64_t stride_;
  Scratch<T> memory_;
};

}  // namespace
}  // namespace fused_rnn::cpu
