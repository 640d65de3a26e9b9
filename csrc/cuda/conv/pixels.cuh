// What the kernels of masked convolution have in common: rings of buffers, and how sums become pixels in shared memory.

#pragma once

#include "cuda/conv/plan.h"
#include "cuda/kit/dtype.cuh"
#include "cuda/kit/hopper.cuh"

namespace fused_rnn::cuda {

// A position in a ring of buffers.
struct RingPosition {
  int stage = 0, parity = 0;
  FUSED_RNN_DEVICE void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

FUSED_RNN_DEVICE void operator+=(float4& sum, const float4& part) {
  sum.x += part.x;
  sum.y += part.y;
  sum.z += part.z;
  sum.w += part.w;
}

// What follows the sums of a matrix instruction with output channels as rows and pixels as columns, of which a thread
// has two channels, 8 apart, and neighbouring pixels.
template <typename T>
struct Epilogue {
  float bias[2];  // of the thread's channels
  bool relu;

  // `channel` is the first of the warpgroup's 64 channels, of which those before `end` exist; `all` has the bias of
  // each channel, or is null.
  FUSED_RNN_DEVICE Epilogue(const void* all, int channel, int end, bool relu) : relu(relu) {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    for (int half = 0; half < 2; ++half) {
      const int own = channel + 16 * (thread / 32) + 8 * half + thread % 32 / 4;
      bias[half] = all && own < end ? widen(static_cast<const T*>(all)[own]) : 0;
    }
  }

  // Stores kCount groups of 8 pixels, from the group `first` on, as the rows of a box of 64 channels. It goes through
  // shared memory, since a thread has neighbouring pixels, but the channels of a pixel are neighbours in memory.
  template <int kCount, int kSums>
  FUSED_RNN_DEVICE void store(const float (&sum)[kSums], int first, char* box) const {
    const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
    char* row = chunk_at(box, lane % 8, 2 * (thread / 32) + lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < kCount; ++i, row += kTileWidth * kRowBytes) {
      uint32_t words[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * (first + i) + 2 * half;
        float pair[2] = {sum[at] + bias[half], sum[at + 1] + bias[half]};
        if (relu)
          for (float& value : pair) value = value < 0 ? 0 : value;
        words[half] = narrow_pair<T>(pair);
      }
      store_transposed(row, words[0], words[1]);
    }
    shared_written();
  }
};

}  // namespace fused_rnn::cuda
