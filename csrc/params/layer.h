// What the kernels of one recurrent layer, LSTM or GRU, in one or both directions, are given.
// All arrays are dense and row-major and live for the length of the call. Rows count the time steps' batch rows one
// step after another: step t has batch_size(t) rows from first_row(t) on. kGates is 4 for the LSTM (i, f, g, o), 3 for
// the GRU (r, z, n); saved gates are 4 for both (GRU: r, z, n and the recurrent part of n's sum).

#pragma once

#include <cstdint>

namespace fused_rnn {

// The steps of a padded batch, or of a packed one, whose rows lie sorted by decreasing length.
struct Steps {
  int64_t time, batch;
  const int64_t* batch_sizes;  // [time], not increasing; null if every step has all `batch` rows
  const int64_t* first_rows;   // [time]; null likewise

  int64_t batch_size(int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  int64_t first_row(int64_t t) const { return first_rows ? first_rows[t] : t * batch; }
  int64_t rows() const { return time == 0 ? 0 : first_row(time - 1) + batch_size(time - 1); }
};

// The weights of one direction.
template <typename T>
struct RecurrentWeights {
  const T* ih;       // [kGates * hidden_size, input_size]
  const T* hh;       // [kGates * hidden_size, output_size]
  const T* bias_ih;  // [kGates * hidden_size], or null
  const T* bias_hh;  // [kGates * hidden_size], or null
  const T* hr;       // [output_size, hidden_size], or null without a projection (LSTM only)
};

// How weights are stored: in the type that is computed in, or in a half precision.
enum class Stored { kComputed, kBFloat16, kFloat16 };

// The weights of one direction, of shapes as above, as the forward pass reads them.
template <typename T>
struct StoredWeights {
  const void *ih, *hh, *hr;  // of the type `stored`
  const T *bias_ih, *bias_hh;
  Stored stored;
};

struct RecurrentSizes {
  Steps steps;
  int64_t input_size, hidden_size;
  int64_t output_size;  // hidden_size, or the projection's
  int64_t directions;   // 1 or 2; the second runs from each sequence's end to its start
  int64_t threads;
};

template <typename T>
struct RecurrentForwardParams {
  RecurrentSizes sizes;
  StoredWeights<T> weights[2];
  bool pairs;      // whether the processor multiplies pairs of bfloat16 numbers, and weights, input and h0 are such
  const T* input;  // [rows, input_size]
  const T* h0;     // [directions, batch, output_size]
  T* output;       // [rows, directions * output_size], written
  T* h_n;          // [directions, batch, output_size], written
  T* c_n;          // [directions, batch, hidden_size], c0 on entry, stepped in place (LSTM only)
  T* gates;        // [directions, rows, 4 * hidden_size], written; null if nothing is to be kept for backward
  T* cells;        // [directions, rows, hidden_size], written; null likewise, and for the GRU
};

// The gradients of the weights of one direction, shaped like them.
template <typename T>
struct RecurrentWeightGradients {
  T* ih;
  T* hh;
  T* bias_ih;  // null without biases
  T* bias_hh;  // null without biases
  T* hr;       // null without a projection
};

template <typename T>
struct RecurrentBackwardParams {
  RecurrentSizes sizes;
  RecurrentWeights<T> weights[2];
  const T* input;        // [rows, input_size]
  const T* h0;           // [directions, batch, output_size]
  const T* c0;           // [directions, batch, hidden_size] (LSTM only)
  const T* output;       // [rows, directions * output_size]
  const T* gates;        // [directions, rows, 4 * hidden_size], as forward left them
  const T* cells;        // [directions, rows, hidden_size], likewise (LSTM only)
  const T* grad_output;  // [rows, directions * output_size], or null for zero
  const T* grad_cells;   // [directions, rows, hidden_size]: gradient of cells, or null for zero (LSTM only)
  T* grad_h;             // [directions, batch, output_size]: gradient of h_n on entry, of h0 on return
  T* grad_c;             // [directions, batch, hidden_size]: likewise of c_n and c0 (LSTM only)
  T* grad_gates;         // [directions, rows, 4 * hidden_size], scratch, written: gradients of the gates' sums
  T* grad_input;         // [rows, input_size], written, or null if not wanted
  bool weight_grad;      // whether grad_weights is wanted
  RecurrentWeightGradients<T> grad_weights[2];
};

}  // namespace fused_rnn
