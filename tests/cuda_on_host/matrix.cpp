// Matrix instructions m16n8 of a warp, whose lanes hold their parts of the matrices as PTX says: lane l has rows l / 4
// and 8 + l / 4 of the left one, column l / 4 of the right one, and two neighbouring columns of the sum from 2 * (l %
// 4) on.

#include <bit>

#include "cuda_on_host.h"
#include "values.h"

namespace fused_rnn::cuda {
namespace {

float from_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }  // the hardware ignores the rest

// For instructions with kValues values in each word of a lane: 2 of half precision (k16), or 1 (k8).
template <int kValues, float (*kDecode)(uint32_t)>
void multiply(host::Lane* lanes) {
  constexpr int kDepth = 8 * kValues;
  float left[16][kDepth], right[kDepth][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int word = 0; word < 4; ++word)
      for (int i = 0; i < kValues; ++i) {
        const auto value = [&](uint32_t bits) { return kDecode(kValues == 1 ? bits : bits >> 16 * i & 0xffff); };
        const int k = lane % 4 * kValues + i;
        left[lane / 4 + word % 2 * 8][k + word / 2 * 4 * kValues] = value(lanes[lane].a[word]);
        if (word < 2) right[k + word * 4 * kValues][lane / 4] = value(lanes[lane].b[word]);
      }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e)
      for (int k = 0; k < kDepth; ++k)
        lanes[lane].sum[e] += left[lane / 4 + e / 2 * 8][k] * right[k][lane % 4 * 2 + e % 2];
}

template <int kValues, float (*kDecode)(uint32_t)>
void mma(const char* name, float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  host::this_lane() = {{a.x, a.y, a.z, a.w}, {b0, b1}, sum};
  host::meet_warp(name, multiply<kValues, kDecode>);
}

}  // namespace

void mma_bfloat16(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  mma<2, host::from_bfloat16>("mma_bfloat16", sum, a, b0, b1);
}
void mma_float16(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  mma<2, host::from_float16>("mma_float16", sum, a, b0, b1);
}
void mma_tf32(float (&sum)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  mma<1, from_tf32>("mma_tf32", sum, a, b0, b1);
}

// To the nearest, ties away from zero.
uint32_t round_to_tf32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return 0x7fffffffu;
  return std::isinf(value) ? bits : (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace fused_rnn::cuda
