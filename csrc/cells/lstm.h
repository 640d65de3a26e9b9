// One step of an LSTM (Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000), for any value
// type V: a number or a vector of numbers. Math gives sigmoid and tanh of V.

#pragma once

namespace fused_rnn::cells {

template <typename V>
struct LSTMGates {
  V i, f, g, o;  // input, forget, cell candidate, output
};

// Turns the gates' sums into gates, and steps the cell; returns the hidden value.
template <typename Math, typename V>
constexpr V lstm_forward(LSTMGates<V>& gates, V& cell) {
  gates.i = Math::sigmoid(gates.i);
  gates.f = Math::sigmoid(gates.f);
  gates.g = Math::tanh(gates.g);
  gates.o = Math::sigmoid(gates.o);
  cell = gates.f * cell + gates.i * gates.g;
  return gates.o * Math::tanh(cell);
}

// Returns the gradients of the gates' sums, given the gradient of the hidden value; turns the gradient of the cell into
// that of the previous cell.
template <typename Math, typename V>
constexpr LSTMGates<V> lstm_backward(const LSTMGates<V>& gates, V previous_cell, V cell, V grad_hidden, V& grad_cell) {
  const V one(1);
  const V tanh_cell = Math::tanh(cell);
  grad_cell = grad_cell + grad_hidden * gates.o * (one - tanh_cell * tanh_cell);
  const LSTMGates<V> grad = {
      grad_cell * gates.g * gates.i * (one - gates.i),
      grad_cell * previous_cell * gates.f * (one - gates.f),
      grad_cell * gates.i * (one - gates.g * gates.g),
      grad_hidden * tanh_cell * gates.o * (one - gates.o),
  };
  grad_cell = grad_cell * gates.f;
  return grad;
}

}  // namespace fused_rnn::cells
