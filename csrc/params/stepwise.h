// What the pointwise CUDA kernels of the stepwise path are given: one step of one direction of a recurrent layer. The
// products with the recurrent weights are computed between one launch and the next, outside.
//
// All arrays are in device memory, dense and row-major. They belong to the caller and live until the kernel has run;
// what is not said to be written is only read. T is the type of the layer's tensors, Accumulator the type of what is
// never rounded to T: float, or double where T is double. kGates, kSums and kReadsHidden are the cell's, see
// cells/cells.h. "Second state" means state 1 of a cell that has two, such as c of the LSTM; its arrays are null for a
// cell of one state. The kernels work on the first `sequences` rows of every array of [batch, ...].

#pragma once

#include <cstdint>

#include "params/cuda_steps.h"
#include "params/resets.h"

namespace fused_rnn {

// A step forward, after the product of the hidden values before it and the recurrent weights.
template <typename T, typename Accumulator>
struct PointwiseForwardParams {
  CudaSteps steps;
  int64_t t, sequences;  // the step, and how many sequences it has: the whole batch unless packed
  int64_t hidden_size, directions, direction;
  const Accumulator* sums;  // [sequences, kGates * hidden_size]: the recurrent part of the sums, without biases
  const T* bias_ih;         // [kGates * hidden_size], or null
  const T* bias_hh;         // [kGates * hidden_size], or null
  const T* before;  // [batch, hidden_size]: hidden values before the step, perhaps the same array as `hidden`; null
                    // with a projection, whose values have another size, and then not for a cell with kReadsHidden
  T* hidden;        // [batch, hidden_size]: written, the hidden values after the step
  // [batch, hidden_size]: what a cell carries from step to step unrounded, which is the second state, or for a cell
  // with kReadsHidden h itself, since a rounding at every step would add up. On entry the values before the step, on
  // return those after it. Null for a cell of one state that T does not round, or that does not read h.
  Accumulator* cell;
  const T* c0;             // [batch, hidden_size]: the values of `cell` before the step, if they are not there; or null
  T* c_n;                  // [batch, hidden_size]: written, the second state after the step; or null
  T* output;               // as in PersistentForwardParams, or null with a projection
  T* gates;                // as in PersistentForwardParams
  T* cells;                // as in PersistentForwardParams
  bool save_for_backward;  // as in PersistentForwardParams
  // The step that follows in the direction, -1 for none. If states are replaced before it, the new ones are left in
  // `hidden`, but with a projection, and in `cell`.
  int64_t next;
  Resets resets;     // as in PersistentForwardParams
  const T* reset_h;  // as in PersistentForwardParams
  const T* reset_c;  // as in PersistentForwardParams
};

// A step backward, before the product of the sums' gradients and the recurrent weights.
template <typename T, typename Accumulator>
struct PointwiseBackwardParams {
  CudaSteps steps;
  int64_t t, before, sequences;  // the step, the step before it in the direction (-1 for none), and its sequences
  int64_t hidden_size, directions, direction;
  const T* h0;           // as in PersistentBackwardParams
  const T* c0;           // as in PersistentBackwardParams
  const T* output;       // as in PersistentBackwardParams
  const T* gates;        // as in PersistentBackwardParams
  const T* cells;        // as in PersistentBackwardParams
  const T* grad_output;  // as in PersistentBackwardParams; not read with grad_projected
  const T* grad_cells;   // as in PersistentBackwardParams
  // [sequences, hidden_size]: with a projection, the whole gradient of the hidden values after the step; else null.
  const Accumulator* grad_projected;
  // Whether this is the first step that is run backward. Then the gradients of the states after it are grad_h_n and
  // grad_c_n; else that of h is grad_h_direct + grad_h_recurrent, and that of the second state is in grad_cell.
  bool first;
  const T* grad_h_n;  // [batch, hidden_size], or null for zero
  const T* grad_c_n;  // [batch, hidden_size], or null for zero
  // [batch, hidden_size]: on entry of the hidden values after the step, on return of those before it, the part of the
  // gradient that does not pass the recurrent weights. Unused with a projection.
  Accumulator* grad_h_direct;
  const Accumulator* grad_h_recurrent;  // [batch, hidden_size]: of those after the step, the part that passes them
  Accumulator* grad_cell;               // [batch, hidden_size]: the gradient of the second state after the step on
                                        // entry, of that before it on return
  T* grad_c0;                           // [batch, hidden_size]: written, what is left in grad_cell; or null
  T* grad_gates;  // [directions, rows, kSums * hidden_size]: written, the gradients of the sums; zero where a sequence
                  // has no step
  // [sequences, kGates * hidden_size]: written, the gradients of the recurrent parts of the gates side by side, for the
  // product; null for a cell whose hidden_sum(g) is g, which has them so in grad_gates.
  T* grad_recurrent;
  int64_t after;  // the step that follows in the direction, -1 for none
  Resets resets;  // as in PersistentBackwardParams, as the next four; with a projection those of h are not read
  const T* reset_h;
  const T* reset_c;
  Accumulator* grad_reset_h;
  Accumulator* grad_reset_c;
};

}  // namespace fused_rnn
