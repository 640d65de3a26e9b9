// Temporary memory for the duration of one call of a kernel.

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

}  // namespace
}  // namespace fused_rnn::cpu
