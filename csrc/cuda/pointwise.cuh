// One step of the plain path, for any size and type: what comes between one product and the next, one thread for each
// unit and sequence.

#pragma once

#include "cuda/activation.cuh"
#include "cuda/number.cuh"
#include "params/recurrent_cuda.h"

namespace fused_rnn::cuda {

constexpr int kPointwiseThreads = 256;

template <typename Cell, typename T>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPointwiseThreads)
    pointwise_forward(const FUSED_RNN_PARAM PointwiseForward<T, State<T>> p) {
  using V = State<T>;
  const int64_t size = p.hidden_size, state = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (state >= p.sequences * size) return;
  const int64_t sequence = state / size, unit = state % size, row = p.steps.row(p.t, sequence);
  const int64_t saved = p.direction * p.steps.rows + row;
  T* output = p.output ? p.output + (row * p.directions + p.direction) * size + unit : nullptr;
  if (!p.steps.runs(p.t, sequence)) {
    if (output) *output = narrow<T>(V(0));
    if (Cell::kHasCell && p.keep) p.cells[saved * size + unit] = V(0);
    return;
  }
  T* gates = p.gates + saved * 4 * size + unit;
  V sums[4] = {0, 0, 0, 0};
  for (int gate = 0; gate < Cell::kGates; ++gate) {
    const int64_t column = gate * size + unit;
    sums[gate] += widen(gates[gate * size]) + (p.bias_ih ? widen(p.bias_ih[column]) : V(0));
    sums[Cell::saved_of(gate)] +=
        p.sums[sequence * Cell::kGates * size + column] + (p.bias_hh ? widen(p.bias_hh[column]) : V(0));
  }
  V cell = Cell::kHasCell ? p.cell[state] : V(0);
  const V before = Cell::kHasCell || !p.cell ? widen(p.hidden[state]) : p.cell[state];
  const V next = Cell::template forward<Activation>(sums, before, cell);
  const T hidden = narrow<T>(next);
  p.hidden[state] = hidden;
  if (output) *output = hidden;
  if (p.cell) p.cell[state] = Cell::kHasCell ? cell : next;
  if (!p.keep) return;
  for (int s = 0; s < 4; ++s) gates[s * size] = narrow<T>(sums[s]);
  if constexpr (Cell::kHasCell) p.cells[saved * size + unit] = cell;
}

template <typename Cell, typename T>
FUSED_RNN_KERNEL void FUSED_RNN_THREADS(kPointwiseThreads)
    pointwise_backward(const FUSED_RNN_PARAM PointwiseBackward<T, State<T>> p) {
  using V = State<T>;
  const int64_t size = p.hidden_size, state = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (state >= p.sequences * size) return;
  const int64_t sequence = state / size, unit = state % size, row = p.steps.row(p.t, sequence);
  const int64_t saved = p.direction * p.steps.rows + row, batch = p.direction * p.steps.batch;
  T* grad_gates = p.grad_gates + saved * 4 * size + unit;
  V gates[4] = {0, 0, 0, 0};
  if (p.steps.runs(p.t, sequence)) {
    const bool has_before = p.before >= 0 && p.steps.runs(p.before, sequence);
    const int64_t row_before = has_before ? p.steps.row(p.before, sequence) : 0;
    for (int s = 0; s < 4; ++s) gates[s] = widen(p.gates[(saved * 4 + s) * size + unit]);
    V grad_hidden = p.grad_projected ? p.grad_projected[state] : p.grad_hidden[state];
    if (p.grad_output) grad_hidden += widen(p.grad_output[(row * p.directions + p.direction) * size + unit]);
    if constexpr (Cell::kHasCell) {
      V grad_cell = p.grad_cell[state] + (p.grad_cells ? p.grad_cells[saved * size + unit] : V(0));
      const V before = has_before ? p.cells[(p.direction * p.steps.rows + row_before) * size + unit]
                                  : widen(p.c0[(batch + sequence) * size + unit]);
      Cell::template backward<Activation>(gates, before, p.cells[saved * size + unit], grad_hidden, grad_cell);
      p.grad_cell[state] = grad_cell;
    } else {
      V none = 0;
      const T before = has_before ? p.output[(row_before * p.directions + p.direction) * size + unit]
                                  : p.h0[(batch + sequence) * size + unit];
      Cell::template backward<Activation>(gates, widen(before), none, grad_hidden, none);
    }
    if (!p.grad_projected) p.grad_hidden[state] = grad_hidden;
  }
  for (int s = 0; s < 4; ++s) grad_gates[s * size] = narrow<T>(gates[s]);
}

template <typename Params>
Launch pointwise_launch(const Params& params, void* stream) {
  const int64_t count = params.sequences * params.hidden_size;
  return {(count + kPointwiseThreads - 1) / kPointwiseThreads, kPointwiseThreads, 0, 1, false, stream};
}

template <typename Cell, typename T>
const char* launch_pointwise(const PointwiseForward<T, State<T>>& params, void* stream) {
  return launch(pointwise_forward<Cell, T>, pointwise_launch(params, stream), params);
}
template <typename Cell, typename T>
const char* launch_pointwise(const PointwiseBackward<T, State<T>>& params, void* stream) {
  return launch(pointwise_backward<Cell, T>, pointwise_launch(params, stream), params);
}

}  // namespace fused_rnn::cuda
