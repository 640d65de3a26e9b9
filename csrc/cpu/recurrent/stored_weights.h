// Weight matrices in the type in which they are stored: the type of the computation, or a half precision, from which
// they are widened while they are read.

#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/kit/pairs.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/tile.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// A weight matrix, row-major and dense.
template <typename T>
class StoredMatrix {
 public:
  StoredMatrix(const void* data, StoredType stored, int64_t columns)
      : data_(data), stored_(stored), columns_(columns) {}

  int64_t columns() const { return columns_; }

  // Returns how many values of scratch rows() needs for this number of rows: none if they need not be widened.
  int64_t scratch(int64_t rows) const { return stored_ == StoredType::kComputeType ? 0 : rows * columns_; }

  // Returns `count` rows from `first` on: in place if they have type T, else widened into `scratch`.
  const T* rows(int64_t first, int64_t count, T* scratch) const {
    const T* result = scratch;
    as_stored([&](const auto* data) {
      const auto* source = data + first * columns_;
      if constexpr (std::is_same_v<decltype(data), const T*>) {
        result = source;
      } else {
        widen_values(source, count * columns_, scratch);
      }
    });
    return result;
  }

  // Copies a row of a bfloat16 matrix to `target` as pairs, see cpu/kit/pairs.h; returns false for other matrices.
  bool pairs(int64_t row, T* target) const {
    if (stored_ != StoredType::kBFloat16) return false;
    copy_pairs(static_cast<const c10::BFloat16*>(data_) + row * columns_, columns_, target);
    return true;
  }

  // Returns the address of a row, to prefetch its cache lines; it is not to be read as T.
  const T* row_address(int64_t row) const {
    const T* result = nullptr;
    as_stored([&](const auto* data) { result = reinterpret_cast<const T*>(data + row * columns_); });
    return result;
  }

  // Calls body(data) with the matrix as a pointer to its stored type.
  template <typename Body>
  void as_stored(const Body& body) const {
    if constexpr (std::is_same_v<T, float>) {
      if (stored_ == StoredType::kBFloat16) return body(static_cast<const c10::BFloat16*>(data_));
      if (stored_ == StoredType::kFloat16) return body(static_cast<const c10::Half*>(data_));
    }
    body(static_cast<const T*>(data_));
  }

 private:
  const void* data_;
  StoredType stored_;
  int64_t columns_;
};

}  // namespace
}  // namespace fused_rnn::cpu
