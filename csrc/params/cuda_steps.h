// The steps of a recurrent layer as the CUDA kernels see them.

#pragma once

#include <cstdint>

namespace fused_rnn {

// The most hidden units of a half-precision layer that a GPU computes in float32 on the stepwise path, and whose cell
// states it saves for backward in float32. Roundings of many units average out, but small layers need this; see
// docs/notes/recurrent-gpu.md.
constexpr int64_t kMostUnitsInFloat32 = 64;

// The steps of a padded batch, with or without a length for each sequence, or those of a packed batch, whose sequences
// are sorted by decreasing length. At most one of lengths and batch_sizes is given. The arrays are in device memory,
// belong to the caller, and live until the kernel has run.
struct CudaSteps {
  int64_t time, batch;
  int64_t rows;                // of all steps together: time * batch, or the sum of batch_sizes
  const int64_t* lengths;      // [batch], each from 0 to time; null if every sequence has all steps
  const int64_t* batch_sizes;  // [time], not increasing: how many sequences have step t; null unless packed
  const int64_t* first_rows;   // [time]: the row of step t and sequence 0; null unless packed

  // Whether `sequence` has a step t.
  constexpr bool runs(int64_t t, int64_t sequence) const {
    return lengths ? t < lengths[sequence] : !batch_sizes || sequence < batch_sizes[t];
  }
  // The row of step t and `sequence` in every array of [rows, ...].
  constexpr int64_t row(int64_t t, int64_t sequence) const {
    return (first_rows ? first_rows[t] : t * batch) + sequence;
  }
  // Whether there are rows for steps that a sequence does not have. The kernels write zeros into such rows of the
  // output, of the cell states and of grad_gates.
  constexpr bool padded() const { return lengths != nullptr; }
};

}  // namespace fused_rnn
