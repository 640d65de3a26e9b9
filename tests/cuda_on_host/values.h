// Values in half precision, as numbers.

#pragma once

#include <bit>
#include <cstdint>

namespace fused_rnn::cuda::host {

inline float from_bfloat16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

// Shifts exponent and mantissa to where float32 has them, and corrects the bias of the exponent by a product.
inline float from_float16(uint32_t bits) {
  constexpr float kBias = 0x1p112f;
  const float size = std::bit_cast<float>((bits & 0x7fff) << 13) * kBias;
  const bool is_finite = (bits & 0x7c00) != 0x7c00;
  const float value = is_finite ? size : std::bit_cast<float>(0x7f80'0000u | (bits & 0x3ff) << 13);
  return bits & 0x8000 ? -value : value;
}

}  // namespace fused_rnn::cuda::host
