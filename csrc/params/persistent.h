// What the persistent CUDA kernels are given: all steps of one recurrent layer, in one or both directions.
//
// All arrays are in device memory, dense and row-major. They belong to the caller, do not overlap, and live until the
// kernel has run; what is not said to be written is only read. T is the type of the layer's tensors. kGates and kSums
// are the cell's, see cells/cells.h. "Second state" means state 1 of a cell that has two, such as c of the LSTM; its
// arrays are null for a cell of one state.

#pragma once

#include <cstdint>

#include "params/cuda_steps.h"
#include "params/resets.h"

namespace fused_rnn {

// How a persistent kernel shares out a layer over the GPU; see cuda/persistent/plan.h.
struct PersistentPlan {
  bool cluster;         // blocks exchange values through distributed shared memory, else through the L2 cache
  int32_t blocks;       // thread blocks of a group, which share out the hidden units
  int32_t groups;       // groups of a direction, which share out the batch
  int32_t units;        // hidden units of a block, an even number; fewer in the last one
  int32_t sequences;    // sequences of a group; fewer in the last one
  int32_t row_tiles;    // tiles of 16 rows that hold a block's rows of the weights
  int32_t batch_tiles;  // tiles of 8 sequences that a block works on at a time
  // How many of each warp's chunks of a segment lie in registers; 0 if all lie in shared memory.
  int32_t chunks_in_registers;
  // Where warpgroups multiply: blocks of a cluster, which share out the depth of each product; else 0.
  int32_t split;
  int32_t partials;         // buffers of partial sums: 2, or 1 where two do not fit into shared memory
  int32_t directions;       // directions of one launch: all, or 1 where they are launched one after the other
  int32_t first_direction;  // the first direction of a launch; the launch sets it
};

template <typename T>
struct PersistentForwardParams {
  CudaSteps steps;
  PersistentPlan plan;
  int64_t hidden_size, directions;
  bool full_precision;    // whether float32 products are as precise as float32; else they are rounded to tf32
  const T* weight_hh[2];  // [kGates * hidden_size, hidden_size] for each direction
  const T* bias_ih[2];    // [kGates * hidden_size] for each direction, or null
  const T* bias_hh[2];    // [kGates * hidden_size] for each direction, null if bias_ih is
  const T* h0;            // [directions, batch, hidden_size]
  const T* c0;            // [directions, batch, hidden_size]: the second state before the first step
  T* output;              // [rows, directions * hidden_size]: written; zero where a sequence has no step
  T* h_n;                 // [directions, batch, hidden_size]: written
  T* c_n;                 // [directions, batch, hidden_size]: written, the second state after the last step
  // [directions, rows, kSums * hidden_size]. On entry the first kGates * hidden_size values of a row are the input's
  // part of the sums, without biases. With save_for_backward they are overwritten by what the cell's forward leaves in
  // `values`; rows of steps that a sequence does not have stay as they were.
  T* gates;
  // [directions, rows, hidden_size]: with save_for_backward written, the second state after each step, zero where a
  // sequence has no step; else it may be null. The next step goes on with values that are not rounded to T.
  T* cells;
  bool save_for_backward;
  Resets resets;  // where the states are replaced; false where a sequence has no step
  const T*
      reset_h;  // [directions, batch, hidden_size] or [time, ...] of that, see Resets: what replaces h; null for zero
  const T* reset_c;  // the same for the second state
};

template <typename T>
struct PersistentBackwardParams {
  CudaSteps steps;
  PersistentPlan plan;
  int64_t hidden_size, directions;
  bool full_precision;    // whether float32 products are as precise as float32; else they are rounded to tf32
  const T* weight_hh[2];  // [kGates * hidden_size, hidden_size] for each direction
  const T* h0;            // [directions, batch, hidden_size]; read only for a cell with kReadsHidden
  const T* c0;            // [directions, batch, hidden_size]: the second state before the first step
  const T* output;        // [rows, directions * hidden_size]; read only for a cell with kReadsHidden
  const T* gates;         // [directions, rows, kSums * hidden_size], as forward left them
  const T* cells;         // [directions, rows, hidden_size], as forward left them
  const T* grad_output;   // [rows, directions * hidden_size], or null for zero
  const T* grad_cells;    // [directions, rows, hidden_size]: the gradient of `cells`, or null for zero
  const T* grad_h_n;      // [directions, batch, hidden_size], or null for zero
  const T* grad_c_n;      // [directions, batch, hidden_size], or null for zero
  T* grad_h0;             // [directions, batch, hidden_size]: written
  T* grad_c0;             // [directions, batch, hidden_size]: written
  T* grad_gates;  // [directions, rows, kSums * hidden_size]: written, the gradients of the sums; zero where a sequence
                  // has no step
  Resets resets;  // these three as forward had them
  const T* reset_h;
  const T* reset_c;
  float* grad_reset_h;  // shaped like reset_h: the gradient is added to it; null if not wanted
  float* grad_reset_c;  // the same for reset_c
};

}  // namespace fused_rnn
