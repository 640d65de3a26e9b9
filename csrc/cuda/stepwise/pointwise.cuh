// One step of the stepwise path, for any size and type: what comes between one product and the next, one thread for
// each unit and sequence.

#pragma once

#include "cuda/kit/activation.cuh"
#include "cuda/kit/dtype.cuh"
#include "params/persistent.h"

namespace fused_rnn::cuda {

constexpr int kPointwiseThreads = 256;

// Adds up the gates' sums of one unit, whose part of the input lies at `gates` if not in p.input_sums.
template <typename Cell, typename T, typename Params>
FUSED_RNN_DEVICE void add_up(const Params& p, int64_t sequence, int64_t unit, const T* gates,
                             Accumulator<T> (&sums)[4]) {
  using V = Accumulator<T>;
  for (int gate = 0; gate < Cell::kGates; ++gate) {
    const int64_t column = gate * p.hidden_size + unit, at = sequence * Cell::kGates * p.hidden_size + column;
    sums[gate] += (p.input_sums ? p.input_sums[at] : widen(gates[gate * p.hidden_size])) +
                  (p.bias_ih ? widen(p.bias_ih[column]) : V(0));
    sums[Cell::saved_of(gate)] += p.sums[at] + (p.bias_hh ? widen(p.bias_hh[column]) : V(0));
  }
}

template <typename Cell, typename T>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPointwiseThreads)
    pointwise_forward(const FUSED_RNN_PARAM PointwiseForwardParams<T, Accumulator<T>> p) {
  using V = Accumulator<T>;
  const int64_t size = p.hidden_size, state = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (state >= p.sequences * size) return;
  const int64_t sequence = state / size, unit = state % size, row = p.steps.row(p.t, sequence);
  const int64_t saved = p.direction * p.steps.rows + row;
  T* output = p.output ? p.output + (row * p.directions + p.direction) * size + unit : nullptr;
  V carried = p.c0 ? widen(p.c0[state]) : p.cell ? p.cell[state] : V(0);  // of an LSTM the cell
  if (p.steps.runs(p.t, sequence)) {
    T* gates = p.gates + saved * 4 * size + unit;
    V sums[4] = {0, 0, 0, 0};
    add_up<Cell, T>(p, sequence, unit, gates, sums);
    const V before = Cell::kHasCell ? V(0) : p.cell ? carried : widen(p.before[state]);
    const V next = Cell::template forward<Activation>(sums, before, carried);
    if constexpr (!Cell::kHasCell) carried = next;
    const T hidden = narrow<T>(next);
    p.hidden[state] = hidden;
    if (output) *output = hidden;
    for (int s = 0; p.save_for_backward && s < 4; ++s) gates[s * size] = narrow<T>(sums[s]);
    if (Cell::kHasCell && p.save_for_backward) p.cells[saved * size + unit] = carried;
  } else {
    if (p.before) p.hidden[state] = p.before[state];
    if (output) *output = narrow<T>(V(0));
    if (Cell::kHasCell && p.save_for_backward) p.cells[saved * size + unit] = V(0);
  }
  if (p.cell) p.cell[state] = carried;
  if (Cell::kHasCell && p.c_n) p.c_n[state] = narrow<T>(carried);
}

// Stores a value, and with `rests` what rounding left out of it `width` further on; nothing of an infinity.
template <typename T>
FUSED_RNN_DEVICE void store_gradient(T* to, Accumulator<T> value, bool rests, int64_t width) {
  const T rounded = narrow<T>(value);
  *to = rounded;
  if (!rests) return;
  const Accumulator<T> rest = value - widen(rounded);
  to[width] = narrow<T>(rest - rest == Accumulator<T>(0) ? rest : Accumulator<T>(0));
}

template <typename Cell, typename T>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPointwiseThreads)
    pointwise_backward(const FUSED_RNN_PARAM PointwiseBackwardParams<T, Accumulator<T>> p) {
  using V = Accumulator<T>;
  const int64_t size = p.hidden_size, state = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (state >= p.sequences * size) return;
  const int64_t sequence = state / size, unit = state % size, row = p.steps.row(p.t, sequence);
  const int64_t saved = p.direction * p.steps.rows + row, batch = p.direction * p.steps.batch;
  V gates[4] = {0, 0, 0, 0}, grad_hidden = 0, grad_cell = 0;
  if (p.grad_projected)
    grad_hidden = p.grad_projected[state];
  else if (!p.first)
    grad_hidden = p.grad_h_direct[state] + p.grad_h_recurrent[state];
  else if (p.grad_h_n)
    grad_hidden = widen(p.grad_h_n[state]);
  if constexpr (Cell::kHasCell)
    grad_cell = !p.first ? p.grad_cell[state] : p.grad_c_n ? widen(p.grad_c_n[state]) : V(0);
  if (p.steps.runs(p.t, sequence)) {
    const bool has_before = p.before >= 0 && p.steps.runs(p.before, sequence);
    const int64_t row_before = has_before ? p.steps.row(p.before, sequence) : 0;
    V hidden_before = 0, cell_before = 0;
    if constexpr (Cell::kHasCell)
      cell_before = has_before ? p.cells[(p.direction * p.steps.rows + row_before) * size + unit]
                               : widen(p.c0[(batch + sequence) * size + unit]);
    else
      hidden_before = widen(has_before ? p.output[(row_before * p.directions + p.direction) * size + unit]
                                       : p.h0[(batch + sequence) * size + unit]);
    if (p.sums) {
      add_up<Cell, T>(p, sequence, unit, static_cast<const T*>(nullptr), gates);
      V cell = cell_before;
      Cell::template forward<Activation>(gates, hidden_before, cell);
    } else {
      for (int s = 0; s < 4; ++s) gates[s] = widen(p.gates[(saved * 4 + s) * size + unit]);
    }
    if (p.grad_output) grad_hidden += widen(p.grad_output[(row * p.directions + p.direction) * size + unit]);
    V cell = 0;
    if constexpr (Cell::kHasCell) {
      if (p.grad_cells) grad_cell += p.grad_cells[saved * size + unit];
      cell = p.cells[saved * size + unit];
    }
    Cell::template backward<Activation>(gates, Cell::kHasCell ? cell_before : hidden_before, cell, grad_hidden,
                                        grad_cell);
  }
  if (!p.grad_projected) p.grad_h_direct[state] = grad_hidden;
  if constexpr (Cell::kHasCell) {
    p.grad_cell[state] = grad_cell;
    if (p.grad_c0) p.grad_c0[state] = narrow<T>(grad_cell);
  } else {
    const int64_t width = Cell::kGates * size;
    T* grad_recurrent = p.grad_recurrent + sequence * (p.rests ? 2 : 1) * width + unit;
    for (int gate = 0; gate < Cell::kGates; ++gate)
      store_gradient(grad_recurrent + gate * size, gates[Cell::saved_of(gate)], p.rests, width);
  }
  T* grad_gates = p.grad_gates + saved * (p.rests ? 8 : 4) * size + unit;
  for (int s = 0; s < 4; ++s) store_gradient(grad_gates + s * size, gates[s], p.rests, 4 * size);
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
