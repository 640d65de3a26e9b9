// What the tests' driver writes into the 128 bytes of a CUtensorMap, and the copies of boxes read.

#pragma once

#include <cuda.h>

#include <cstdint>

namespace fused_rnn::cuda::host {

struct EncodedMap {
  static constexpr uint64_t kMade = 0x7465'6e73'6f72'206d;
  static constexpr int kMostDimensions = 5;

  uint64_t made;  // kMade
  char* data;
  int64_t sizes[kMostDimensions];
  int64_t strides[kMostDimensions - 1];  // in bytes, of all dimensions but the first
  uint16_t box[kMostDimensions];
  uint8_t rank;
};
static_assert(sizeof(EncodedMap) <= sizeof(CUtensorMap));

}  // namespace fused_rnn::cuda::host
