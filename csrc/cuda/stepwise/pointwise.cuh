// The kernels of the stepwise path, for any size and type: what comes between one product and the next. A thread
// computes one hidden unit of one sequence.

#pragma once

#include "cells/cells.h"
#include "cuda/kit/activation.cuh"
#include "cuda/kit/dtype.cuh"
#include "params/stepwise.h"

namespace fused_rnn::cuda {

constexpr int kPointwiseThreads = 256;

// Whether a cell has a second state.
template <typename Cell>
constexpr bool has_cell_state() {
  static_assert(Cell::kStates <= 2, "the params have pointers for h and one more state");
  return Cell::kStates > 1;
}

// Whether the states of a sequence are replaced before a step, which it may not have; -1 for no step.
FUSED_RNN_DEVICE bool replaced_before(const CudaSteps& steps, const Resets& resets, int64_t direction, int64_t t,
                                      int64_t sequence) {
  return resets.begins && t >= 0 && steps.runs(t, sequence) && resets.before(direction, steps.row(t, sequence));
}

// Returns the state that replaces another, or zero.
template <typename T>
FUSED_RNN_DEVICE Accumulator<T> replacement(const T* states, int64_t at) {
  return states ? widen(states[at]) : Accumulator<T>(0);
}

// Adds a gradient to that of a state that replaced another, and returns what is left for the other: nothing.
template <typename V>
FUSED_RNN_DEVICE V move_gradient(V gradient, V* to, int64_t at) {
  if (to) to[at] += gradient;
  return V(0);
}

// Adds up the sums of one unit; the input's part is at `gates`.
template <typename Cell, typename T>
FUSED_RNN_DEVICE void add_up(const PointwiseForwardParams<T, Accumulator<T>>& p, int64_t sequence, int64_t unit,
                             const T* gates, Accumulator<T> (&sums)[Cell::kSums]) {
  using V = Accumulator<T>;
  for (int gate = 0; gate < Cell::kGates; ++gate) {
    const int64_t column = gate * p.hidden_size + unit, at = sequence * Cell::kGates * p.hidden_size + column;
    sums[gate] += widen(gates[gate * p.hidden_size]) + (p.bias_ih ? widen(p.bias_ih[column]) : V(0));
    sums[Cell::hidden_sum(gate)] += p.sums[at] + (p.bias_hh ? widen(p.bias_hh[column]) : V(0));
  }
}

template <typename Cell, typename T>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPointwiseThreads)
    pointwise_forward(const FUSED_RNN_PARAM PointwiseForwardParams<T, Accumulator<T>> p) {
  using V = Accumulator<T>;
  constexpr bool kHasCellState = has_cell_state<Cell>();
  const int64_t size = p.hidden_size, state = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (state >= p.sequences * size) return;
  const int64_t sequence = state / size, unit = state % size, row = p.steps.row(p.t, sequence);
  const int64_t saved = p.direction * p.steps.rows + row;
  T* output = p.output ? p.output + (row * p.directions + p.direction) * size + unit : nullptr;
  // The state that is never rounded to T: see PointwiseForwardParams::cell.
  V carried = p.c0 ? widen(p.c0[state]) : p.cell ? p.cell[state] : V(0);
  if (p.steps.runs(p.t, sequence)) {
    T* gates = p.gates + saved * Cell::kSums * size + unit;
    V sums[Cell::kSums] = {}, states[Cell::kStates] = {};
    add_up<Cell, T>(p, sequence, unit, gates, sums);
    if constexpr (Cell::kReadsHidden) states[0] = !kHasCellState && p.cell ? carried : widen(p.before[state]);
    if constexpr (kHasCellState) states[1] = carried;
    Cell::template forward<Activation>(sums, states);
    carried = states[Cell::kStates - 1];
    const T hidden = narrow<T>(states[0]);
    p.hidden[state] = hidden;
    if (output) *output = hidden;
    for (int s = 0; p.save_for_backward && s < Cell::kSums; ++s) gates[s * size] = narrow<T>(sums[s]);
    if (kHasCellState && p.save_for_backward) p.cells[saved * size + unit] = narrow<T>(carried);
  } else {
    if (p.before) p.hidden[state] = p.before[state];
    if (output) *output = narrow<T>(V(0));
    if (kHasCellState && p.save_for_backward) p.cells[saved * size + unit] = narrow<T>(V(0));
  }
  if (replaced_before(p.steps, p.resets, p.direction, p.next, sequence)) {
    const int64_t at = p.resets.state(p.direction, p.next, sequence) * size + unit;
    carried = replacement(kHasCellState ? p.reset_c : p.reset_h, at);
    if (p.before) p.hidden[state] = narrow<T>(replacement(p.reset_h, at));
  }
  if (p.cell) p.cell[state] = carried;
  if (kHasCellState && p.c_n) p.c_n[state] = narrow<T>(carried);
}

template <typename Cell, typename T>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPointwiseThreads)
    pointwise_backward(const FUSED_RNN_PARAM PointwiseBackwardParams<T, Accumulator<T>> p) {
  using V = Accumulator<T>;
  constexpr bool kHasCellState = has_cell_state<Cell>();
  const int64_t size = p.hidden_size, state = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (state >= p.sequences * size) return;
  const int64_t sequence = state / size, unit = state % size, row = p.steps.row(p.t, sequence);
  const int64_t saved = p.direction * p.steps.rows + row, batch = p.direction * p.steps.batch;
  V gates[Cell::kSums] = {}, grads[Cell::kStates] = {};
  if (p.grad_projected)
    grads[0] = p.grad_projected[state];
  else if (!p.first)
    grads[0] = p.grad_h_direct[state] + p.grad_h_recurrent[state];
  else if (p.grad_h_n)
    grads[0] = widen(p.grad_h_n[state]);
  if constexpr (kHasCellState) grads[1] = !p.first ? p.grad_cell[state] : p.grad_c_n ? widen(p.grad_c_n[state]) : V(0);
  if (replaced_before(p.steps, p.resets, p.direction, p.after, sequence)) {
    const int64_t at = p.resets.state(p.direction, p.after, sequence) * size + unit;
    if (!p.grad_projected) grads[0] = move_gradient(grads[0], p.grad_reset_h, at);
    if constexpr (kHasCellState) grads[1] = move_gradient(grads[1], p.grad_reset_c, at);
  }
  if (p.steps.runs(p.t, sequence)) {
    const bool has_before = p.before >= 0 && p.steps.runs(p.before, sequence);
    const int64_t row_before = has_before ? p.steps.row(p.before, sequence) : 0;
    V before[Cell::kStates] = {}, after[Cell::kStates] = {};
    if constexpr (kHasCellState)
      before[1] = widen(has_before ? p.cells[(p.direction * p.steps.rows + row_before) * size + unit]
                                   : p.c0[(batch + sequence) * size + unit]);
    if constexpr (Cell::kReadsHidden)
      before[0] = widen(has_before ? p.output[(row_before * p.directions + p.direction) * size + unit]
                                   : p.h0[(batch + sequence) * size + unit]);
    if (p.resets.before(p.direction, row)) {
      const int64_t at = p.resets.state(p.direction, p.t, sequence) * size + unit;
      if constexpr (kHasCellState) before[1] = replacement(p.reset_c, at);
      if constexpr (Cell::kReadsHidden) before[0] = replacement(p.reset_h, at);
    }
    for (int s = 0; s < Cell::kSums; ++s) gates[s] = widen(p.gates[(saved * Cell::kSums + s) * size + unit]);
    if (p.grad_output) grads[0] += widen(p.grad_output[(row * p.directions + p.direction) * size + unit]);
    if constexpr (kHasCellState) {
      if (p.grad_cells) grads[1] += widen(p.grad_cells[saved * size + unit]);
      after[1] = widen(p.cells[saved * size + unit]);
    }
    Cell::template backward<Activation>(gates, before, after, grads);
  }
  if (!p.grad_projected) p.grad_h_direct[state] = grads[0];
  if constexpr (kHasCellState) {
    p.grad_cell[state] = grads[1];
    if (p.grad_c0) p.grad_c0[state] = narrow<T>(grads[1]);
  }
  if constexpr (cells::describe<Cell>().splits_sums()) {
    T* grad_recurrent = p.grad_recurrent + sequence * Cell::kGates * size + unit;
    for (int gate = 0; gate < Cell::kGates; ++gate)
      grad_recurrent[gate * size] = narrow<T>(gates[Cell::hidden_sum(gate)]);
  }
  T* grad_gates = p.grad_gates + saved * Cell::kSums * size + unit;
  for (int s = 0; s < Cell::kSums; ++s) grad_gates[s * size] = narrow<T>(gates[s]);
}

template <typename Params>
Launch pointwise_launch(const Params& params, void* stream) {
  const int64_t count = params.sequences * params.hidden_size;
  return {(count + kPointwiseThreads - 1) / kPointwiseThreads, kPointwiseThreads, 0, 1, false, stream};
}

template <typename Cell, typename T>
const char* launch_pointwise(const PointwiseForwardParams<T, Accumulator<T>>& params, void* stream) {
  return launch(pointwise_forward<Cell, T>, pointwise_launch(params, stream), params);
}
template <typename Cell, typename T>
const char* launch_pointwise(const PointwiseBackwardParams<T, Accumulator<T>>& params, void* stream) {
  return launch(pointwise_backward<Cell, T>, pointwise_launch(params, stream), params);
}

}  // namespace fused_rnn::cuda
