// The list of all cells, and what a cell must define. Nothing else lists the cells: the loops on a CPU, the kernels for
// a GPU, the operators and, through fused_rnn._C, Python read the structure of a cell from here.
//
// One step of a layer multiplies the input by weight_ih and the hidden values by weight_hh, adds biases, and hands the
// sums of each hidden unit to the cell, which turns them into the unit's next states. A cell is a struct with:
//
//   kName            the name by which the operators know the cell
//   kGates           how many rows of weight_ih, weight_hh and the biases belong to each hidden unit
//   kSums            how many sums each hidden unit has. The input's part of gate g, with bias_ih, is always added to
//                    sum g
//   hidden_sum(g)    the sum to which the recurrent part of gate g, with bias_hh, is added: g itself, unless the cell
//                    needs the two parts apart
//   kStates          how many states each hidden unit has. State 0 is h, which is the output and is multiplied by
//                    weight_hh in the next step; the others, such as c of the LSTM, are only passed to the next step
//   kReadsHidden     whether a step also reads the unit's own previous h, besides the recurrent product
//   bounded(s)       whether the value that forward leaves for sum s lies between -1 and 1, as sigmoid and tanh do
//   kOutputGate      for a cell whose h may be projected to another size, the index of the value v that forward leaves
//                    with h = v * tanh(state 1), from which the backward pass recomputes h; else -1
//   forward(values, states)
//                    replaces the sums in `values` by the values that the backward pass needs, and the states before
//                    the step by the states after it. On entry states[0] is valid only if kReadsHidden
//   backward(values, before, after, grads)
//                    replaces the values that forward left by the gradients of the sums, and the gradients of the
//                    states after the step by those of the states before it; for h, by the part of the gradient that
//                    does not come through weight_hh. States 1 and up of `before` and `after` are valid; before[0] only
//                    if kReadsHidden
//
// V is a number or a vector of numbers. Math has sigmoid(x), tanh(x), relu(x), and relu_backward(y, grad), which is
// grad where y = relu(x) is positive and else zero.

#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace fused_rnn::cells {

// Calls X(cell) for every cell. A new cell needs a header, which is included above, and its name here.
#define FUSED_RNN_FOR_EACH_CELL(X) X(LSTM) X(GRU) X(RNNTanh) X(RNNReLU)

// A cell that is known only at run time.
enum class Kind : int {
#define FUSED_RNN_KIND(Cell) k##Cell,
  FUSED_RNN_FOR_EACH_CELL(FUSED_RNN_KIND)
#undef FUSED_RNN_KIND
};

constexpr int kMaxGates = 4;
constexpr int kMaxStates = 4;

// Consecutive gates whose recurrent parts are added to consecutive sums, so that one matrix product computes them all.
struct GateRun {
  int gate, sum, count;
};
struct GateRuns {
  GateRun run[kMaxGates];
  int count;
};

// Returns all gates of a cell as the fewest runs, in order: a single run if hidden_sum(g) is g for all gates.
template <typename Cell>
constexpr GateRuns gate_runs() {
  GateRuns runs = {};
  for (int gate = 0; gate < Cell::kGates; ++gate) {
    const int sum = Cell::hidden_sum(gate);
    if (gate > 0 && sum == Cell::hidden_sum(gate - 1) + 1)
      ++runs.run[runs.count - 1].count;
    else
      runs.run[runs.count++] = {gate, sum, 1};
  }
  return runs;
}

// The structure of a cell as run-time values.
struct Description {
  const char* name;
  int gates, sums, states;
  int hidden_sums[kMaxGates];  // hidden_sum(g) of each gate g
  GateRuns runs;
  bool reads_hidden;
  int output_gate;

  // The number of states besides h.
  constexpr int cell_states() const { return states - 1; }
  constexpr bool may_project() const { return output_gate >= 0; }
  // Whether a gate's recurrent part is added to another sum than its input's part, as that of the GRU's candidate.
  constexpr bool splits_sums() const {
    for (int gate = 0; gate < gates; ++gate)
      if (hidden_sums[gate] != gate) return true;
    return false;
  }
};

template <typename Cell>
constexpr Description describe() {
  static_assert(Cell::kGates <= kMaxGates && Cell::kGates <= Cell::kSums && Cell::kStates <= kMaxStates);
  Description cell = {};
  cell.name = Cell::kName;
  cell.gates = Cell::kGates;
  cell.sums = Cell::kSums;
  cell.states = Cell::kStates;
  cell.runs = gate_runs<Cell>();
  cell.reads_hidden = Cell::kReadsHidden;
  cell.output_gate = Cell::kOutputGate;
  for (int gate = 0; gate < Cell::kGates; ++gate) cell.hidden_sums[gate] = Cell::hidden_sum(gate);
  return cell;
}

inline constexpr Description kDescriptions[] = {
#define FUSED_RNN_DESCRIBE(Cell) describe<Cell>(),
    FUSED_RNN_FOR_EACH_CELL(FUSED_RNN_DESCRIBE)
#undef FUSED_RNN_DESCRIBE
};

constexpr const Description& describe(Kind kind) { return kDescriptions[static_cast<int>(kind)]; }

// Calls body.template operator()<Cell>() for a cell that is known only at run time, and returns what it returns.
template <typename Body>
constexpr auto with_cell(Kind kind, const Body& body) {
#define FUSED_RNN_CASE(Cell) \
  if (kind == Kind::k##Cell) return body.template operator()<Cell>();
  FUSED_RNN_FOR_EACH_CELL(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
  __builtin_unreachable();
}

}  // namespace fused_rnn::cells
