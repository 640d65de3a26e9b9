// The arguments of the CPU kernels of one recurrent layer, in one or both directions.
//
// All arrays are dense and row-major. They belong to the caller and live for the duration of the call. What is not
// said to be written is only read; arrays that are written overlap no others. Arrays of [rows, ...] hold the batch rows
// of all time steps: step t has batch_size(t) rows from first_row(t) on. kGates, kSums and kReadsHidden are the cell's,
// see cells/cells.h. The "cell state" is state 1 of a cell that has two states, such as c of the LSTM; its arrays are
// null for a cell of one state.
//
// T is the type of the computation. Stored is T, or bfloat16 to multiply in pairs of bfloat16: the type of input
// and output, of what is saved for backward, of what the backward pass multiplies, and of the products that it returns.

#pragma once

#include <cstdint>

#include "params/resets.h"

namespace fused_rnn {

// The steps of a padded batch, or of a packed batch, whose sequences are sorted by decreasing length.
struct Steps {
  int64_t time, batch;
  const int64_t* batch_sizes;  // [time], not increasing: how many sequences have step t; null unless packed
  const int64_t* first_rows;   // [time]: the row of step t and sequence 0; null unless packed

  int64_t batch_size(int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  int64_t first_row(int64_t t) const { return first_rows ? first_rows[t] : t * batch; }
  int64_t rows() const { return time == 0 ? 0 : first_row(time - 1) + batch_size(time - 1); }
};

// The weights of one direction for the backward pass, which does not need the biases.
template <typename T, typename Stored>
struct RecurrentWeights {
  const Stored* ih;  // [kGates * hidden_size, input_size]
  const Stored* hh;  // [kGates * hidden_size, output_size]
  const T* hr;       // [output_size, hidden_size], or null without a projection
};

// The type in which weights are stored: the type of the computation, or a half precision.
enum class StoredType { kComputeType, kBFloat16, kFloat16 };

// The weights of one direction for the forward pass, which widens matrices of half precision itself. The matrices have
// the shapes of those in RecurrentWeights.
template <typename T>
struct StoredWeights {
  const void *ih, *hh, *hr;    // of type `stored`
  const T *bias_ih, *bias_hh;  // [kGates * hidden_size], or null
  StoredType stored;
};

// How the weight matrices of a frozen layer are packed.
enum class FrozenForm : int64_t {
  kValues,    // in the type of the computation
  kPairs,     // as pairs of bfloat16 that are multiplied by pairs, see cpu/kit/pairs.h
  kBFloat16,  // as pairs of bfloat16 that are multiplied by floats, see cpu/kit/widened_pairs.h
  kInt8,      // as bytes with a scale for each row, see cpu/kit/bytes.h
};

// The packed weights of a frozen layer, which outlive a call.
struct FrozenWeights {
  void* data;  // null for a layer that is not frozen. In the order and alignment of cpu/recurrent/packed_weights.h
  FrozenForm form;
  int64_t block_units;  // hidden units whose weights are packed together
  bool projected;       // whether there is a weight_hr
};

struct RecurrentSizes {
  Steps steps;
  int64_t input_size, hidden_size;
  int64_t output_size;  // hidden_size, or the size of the projection
  int64_t directions;   // 1 or 2; the second runs from each sequence's end to its beginning
  int64_t threads;      // the most threads that may be used
};

template <typename T, typename Stored = T>
struct RecurrentForwardParams {
  RecurrentSizes sizes;
  StoredWeights<T> weights[2];  // null in a frozen layer
  FrozenWeights frozen;
  const Stored* input;  // [rows, input_size]
  const T* h0;          // [directions, batch, output_size]
  Resets resets;        // where the states are replaced by those in reset_h and reset_c
  const T* reset_h;     // [directions, batch, output_size] or [time, ...] of that, see Resets; null without resets
  const T* reset_c;     // the same for the cell states, of hidden_size
  Stored* output;       // [rows, directions * output_size], written
  T* h_n;               // [directions, batch, output_size], written
  T* c_n;         // [directions, batch, hidden_size], the cell states: c0 on entry, those after the last step on return
  Stored* gates;  // [directions, rows, kSums * hidden_size], written: what the cell's forward leaves in `values`, as
                  // cpu/recurrent/saved_values.h stores it; null if nothing is saved for backward
  T* cells;       // [directions, rows, hidden_size], written: cell states after each step; null if they are not wanted
};

// The gradients of the weights of one direction. The matrices have the shapes of those in RecurrentWeights.
template <typename T, typename Stored>
struct RecurrentWeightGradients {
  Stored* ih;
  Stored* hh;
  T* bias_ih;  // null without biases
  T* bias_hh;  // null without biases
  T* hr;       // null without a projection
};

template <typename T, typename Stored = T>
struct RecurrentBackwardParams {
  RecurrentSizes sizes;
  RecurrentWeights<T, Stored> weights[2];
  const Stored* input;  // [rows, input_size]
  const Stored* h0;     // [directions, batch, output_size]
  const T* c0;          // [directions, batch, hidden_size]: the cell states before the first step
  Resets resets;        // these three as forward had them
  const Stored* reset_h;
  const T* reset_c;
  const Stored* output;  // [rows, directions * output_size]; may be null if there is one step, which does not read it
  const Stored* gates;   // [directions, rows, kSums * hidden_size], as forward left them
  const T* cells;        // [directions, rows, hidden_size], as forward left them
  const Stored* grad_output;  // [rows, directions * output_size], or null for zero
  const T* grad_cells;        // [directions, rows, hidden_size]: the gradient of `cells`, or null for zero
  T* grad_h;                  // [directions, batch, output_size]: the gradient of h_n on entry, of h0 on return
  T* grad_c;                  // [directions, batch, hidden_size]: the gradient of c_n on entry, of c0 on return
  T* grad_reset_h;            // shaped like reset_h: the gradient is added to it; null if not wanted
  T* grad_reset_c;            // the same for reset_c
  Stored* grad_gates;         // [directions, rows, kSums, hidden_size], scratch, written: the gradients of the sums; in
                              // pairs, hidden_size is rounded up to an even number
  Stored* grad_input;         // [rows, input_size], written; null if not wanted
  bool weight_grad;           // whether grad_weights are wanted
  RecurrentWeightGradients<T, Stored> grad_weights[2];
};

}  // namespace fused_rnn
