// Weights as they are stored: in the type that is computed in, or in a half precision, widened while they are read.

#pragma once

#include <ATen/cpu/vec/functional_base.h>
#include <ATen/cpu/vec/functional_bfloat16.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// Loads `count` values (kLanes or fewer) of type W as T; the lanes above are zero.
template <typename T, typename W>
inline Vec<T> load_widened(const W* source, int64_t count) {
  if constexpr (std::is_same_v<T, W>) {
    return load(source, count);
  } else {
    Vec<T> value;
    if (count == kLanes<T>) {
      at::vec::load_to_float(source, value);
    } else {
      W part[kLanes<T>] = {};
      std::memcpy(part, source, static_cast<size_t>(count) * sizeof(W));
      at::vec::load_to_float(part, value);
    }
    return value;
  }
}

// A matrix of weights, row-major and dense.
template <typename T>
class StoredMatrix {
 public:
  StoredMatrix(const void* data, Stored stored, int64_t columns) : data_(data), stored_(stored), columns_(columns) {}

  // How many values rows() needs of `scratch`: none if they need not be widened.
  int64_t scratch(int64_t rows) const { return stored_ == Stored::kComputed ? 0 : rows * columns_; }

  // Returns `count` rows from `first` on, where they lie or widened into `scratch`.
  const T* rows(int64_t first, int64_t count, T* scratch) const {
    const T* result = scratch;
    as_stored([&](const auto* data) {
      const auto* source = data + first * columns_;
      if constexpr (std::is_same_v<decltype(data), const T*>) {
        result = source;
      } else {
        for (int64_t i = 0; i < count * columns_; i += kLanes<T>) {
          const int64_t lanes = smaller(count * columns_ - i, kLanes<T>);
          store(scratch + i, load_widened<T>(source + i, lanes), lanes);
        }
      }
    });
    return result;
  }

  // Returns the same rows, stored as bfloat16, copied into `scratch` as pairs; see pairs.h.
  const T* pairs(int64_t first, int64_t count, T* scratch) const {
    const auto* source = static_cast<const c10::BFloat16*>(data_) + first * columns_;
    const int64_t places = divide_up(columns_, 2);
    for (int64_t row = 0; row < count; ++row) {
      scratch[(row + 1) * places - 1] = T(0);  // an odd row's last pair has no second
      std::memcpy(scratch + row * places, source + row * columns_, static_cast<size_t>(columns_) * sizeof(*source));
    }
    return scratch;
  }

  // Where a row begins, to ask for its lines ahead.
  const T* line_of(int64_t row) const {
    const T* result = nullptr;
    as_stored([&](const auto* data) { result = reinterpret_cast<const T*>(data + row * columns_); });
    return result;
  }

  // Calls body(data) with a pointer to the stored type.
  template <typename Body>
  void as_stored(const Body& body) const {
    if constexpr (std::is_same_v<T, float>) {
      if (stored_ == Stored::kBFloat16) return body(static_cast<const c10::BFloat16*>(data_));
      if (stored_ == Stored::kFloat16) return body(static_cast<const c10::Half*>(data_));
    }
    body(static_cast<const T*>(data_));
  }

 private:
  const void* data_;
  Stored stored_;
  int64_t columns_;
};

}  // namespace
}  // namespace fused_rnn::cpu
