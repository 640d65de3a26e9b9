// What the CUDA kernels of one recurrent layer, LSTM or GRU, in one or both directions, are given. Pointers are to
// device memory, dense and row-major, and live until the kernel has run. T is the type of the caller's tensors,
// Accumulator the type of what is never rounded to it: float, or double for T double. Rows and kGates are as in
// params/layer.h.

#pragma once

#include <cstdint>

namespace fused_rnn {

// The steps of a padded batch, with or without a length for each sequence, or of a packed one, whose rows lie sorted by
// decreasing length. At most one of lengths and batch_sizes is given.
struct CudaSteps {
  int64_t time, batch, rows;
  const int64_t* lengths;      // [batch], 0 to time; null if every sequence has all steps
  const int64_t* batch_sizes;  // [time], not increasing; null unless packed
  const int64_t* first_rows;   // [time]; null unless packed

  // Whether `sequence` has a step t.
  constexpr bool runs(int64_t t, int64_t sequence) const {
    return lengths ? t < lengths[sequence] : !batch_sizes || sequence < batch_sizes[t];
  }
  constexpr int64_t row(int64_t t, int64_t sequence) const {
    return (first_rows ? first_rows[t] : t * batch) + sequence;
  }
  // Whether there is a row for a step that a sequence does not have.
  constexpr bool padded() const { return lengths != nullptr; }
};

// How a persistent kernel shares out a layer; see cuda/persistent_plan.h.
struct PersistentPlan {
  bool cluster;         // states travel through distributed shared memory, not through the L2 cache
  int32_t blocks;       // thread blocks of a group, which share out the hidden units
  int32_t groups;       // of a direction, which share out the batch
  int32_t units;        // hidden units of a block, an even number; fewer in the last one
  int32_t sequences;    // of a group; fewer in the last one
  int32_t row_tiles;    // of 16 rows of the weights
  int32_t batch_tiles;  // of 8 sequences, which a block works on at a time
  int32_t
      chunks_in_registers;  // of each warp's chunks of a segment how many lie in registers; 0 for all in shared memory
  int32_t partials;         // buffers of partial sums: 2, or 1 where two do not fit
  int32_t directions;       // of a launch: all, or 1 where they are launched one after the other
  int32_t first_direction;  // of a launch, which sets it
};

template <typename T, typename Accumulator>
struct PersistentForwardParams {
  CudaSteps steps;
  PersistentPlan plan;  // for the persistent kernels only
  int64_t hidden_size, directions;
  bool allow_tf32;        // whether float32 products may be rounded to tf32
  const T* weight_hh[2];  // [kGates * hidden_size, hidden_size]
  const T* bias_ih[2];    // [kGates * hidden_size], or null
  const T* bias_hh[2];    // [kGates * hidden_size], or null
  const T* h0;            // [directions, batch, hidden_size]
  const T* c0;            // [directions, batch, hidden_size] (LSTM only)
  T* output;              // [rows, directions * hidden_size], written
  T* h_n;                 // [directions, batch, hidden_size], written
  T* c_n;                 // [directions, batch, hidden_size], written (LSTM only)
  T* gates;               // [directions, rows, 4 * hidden_size]: on entry the input's part of the gates' sums, without
             // biases, in the first kGates; on return, if they are kept, the gates as in RecurrentForwardParams
  Accumulator* cells;      // [directions, rows, hidden_size], written; null if nothing is kept, and for the GRU
  bool save_for_backward;  // whether gates and cells are kept for backward
};

template <typename T, typename Accumulator>
struct PersistentBackwardParams {
  CudaSteps steps;
  PersistentPlan plan;  // for the persistent kernels only
  int64_t hidden_size, directions;
  bool allow_tf32;                // whether float32 products may be rounded to tf32
  const T* weight_hh[2];          // [kGates * hidden_size, hidden_size]
  const T* h0;                    // [directions, batch, hidden_size] (GRU only)
  const T* c0;                    // [directions, batch, hidden_size] (LSTM only)
  const T* output;                // [rows, directions * hidden_size] (GRU only)
  const T* gates;                 // [directions, rows, 4 * hidden_size], as forward left them
  const Accumulator* cells;       // [directions, rows, hidden_size], likewise (LSTM only)
  const T* grad_output;           // [rows, directions * hidden_size], or null for zero
  const Accumulator* grad_cells;  // [directions, rows, hidden_size], or null for zero (LSTM only)
  const T* grad_h_n;              // [directions, batch, hidden_size], or null for zero
  const T* grad_c_n;              // [directions, batch, hidden_size], or null for zero (LSTM only)
  T* grad_h0;                     // [directions, batch, hidden_size], written
  T* grad_c0;                     // [directions, batch, hidden_size], written (LSTM only)
  T* grad_gates;                  // [directions, rows, 4 * hidden_size], written: gradients of the gates' sums
};

// One step of one direction, after the product of the hidden values and the recurrent weights.
template <typename T, typename Accumulator>
struct PointwiseForwardParams {
  CudaSteps steps;
  int64_t t, sequences;  // the step, and how many sequences it has; with lengths all
  int64_t hidden_size, directions, direction;
  const Accumulator*
      input_sums;           // [sequences, kGates * hidden_size]: the input's part of the gates' sums; null if in gates
  const Accumulator* sums;  // [sequences, kGates * hidden_size]: the recurrent part of the gates' sums
  const T* bias_ih;         // [kGates * hidden_size], or null
  const T* bias_hh;         // [kGates * hidden_size], or null
  const T* before;          // [batch, hidden_size]: hidden values before the step, perhaps in `hidden`; null with a
                            // projection, which has values of another size there
  T* hidden;                // [batch, hidden_size], written: hidden values after the step
  const T* c0;              // [batch, hidden_size]: what `cell` has before the step; null if it is there
  Accumulator* cell;        // [batch, hidden_size], written: after the step cell values, or of the GRU hidden values
                            // that are not rounded to T; null where T rounds nothing (GRU only)
  T* c_n;                   // [batch, hidden_size], written: the same, or null (LSTM only)
  T* output;                // as in PersistentForwardParams, or null with a projection
  T* gates;                 // as in PersistentForwardParams
  Accumulator* cells;       // as in PersistentForwardParams
  bool save_for_backward;   // as in PersistentForwardParams
};

// One step of one direction backwards, before the product of the gates' gradients and the recurrent weights.
template <typename T, typename Accumulator>
struct PointwiseBackwardParams {
  CudaSteps steps;
  int64_t t, before, sequences;  // the step, the one before it in the direction (-1 for none), how many sequences
  int64_t hidden_size, directions, direction;
  const Accumulator* input_sums;  // as in PointwiseForwardParams, not null if `sums` is not
  const Accumulator* sums;        // as in PointwiseForwardParams: then the gates are computed anew; or null
  const T* bias_ih;               // as in PointwiseForwardParams; for gates computed anew
  const T* bias_hh;               // as in PointwiseForwardParams; for gates computed anew
  const T* h0;                    // as in PersistentBackwardParams
  const T* c0;                    // as in PersistentBackwardParams (LSTM only)
  const T* output;                // as in PersistentBackwardParams (GRU only)
  const T* gates;                 // as in PersistentBackwardParams
  const Accumulator* cells;       // as in PersistentBackwardParams (LSTM only)
  const T* grad_output;           // as in PersistentBackwardParams, or null for zero
  const Accumulator* grad_cells;  // as in PersistentBackwardParams, or null for zero (LSTM only)
  const Accumulator*
      grad_projected;  // [sequences, hidden_size]: with a projection, all of the hidden values' gradient; or null
  bool first;          // whether this is the first step to be run backwards, whose gradients of the states after it are
                       // grad_h_n and grad_c_n; else they are grad_h_direct + grad_h_recurrent, and grad_cell
  const T* grad_h_n;   // [batch, hidden_size], or null for zero
  const T* grad_c_n;   // [batch, hidden_size], or null for zero (LSTM only)
  Accumulator* grad_h_direct;  // [batch, hidden_size], written: the part of the gradient of the hidden values before
                               // the step that does not pass the weights; unused with a projection
  const Accumulator* grad_h_recurrent;  // [batch, hidden_size]: the part that does, of the hidden values after the step
  Accumulator* grad_cell;               // [batch, hidden_size], written: of the cell values before the step (LSTM only)
  T* grad_c0;                           // [batch, hidden_size], written: the same, or null (LSTM only)
  T* grad_gates;                        // as in PersistentBackwardParams
  T* grad_recurrent;  // [sequences, kGates * hidden_size], written: gradients of the sums' recurrent part, which the
                      // GRU has not side by side in grad_gates (GRU only)
  bool rests;         // whether rows of the last two are twice as wide, what rounding left out in their second half
};

}  // namespace fused_rnn
