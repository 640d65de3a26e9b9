// What an LSTM's step adds to the loops over a recurrent layer on a GPU.

#pragma once

#include "cells/lstm.h"
#include "cuda/kit/platform.cuh"

namespace fused_rnn::cuda {

struct LSTMCell {
  static constexpr int kGates = 4;
  static constexpr bool kHasCell = true;  // else it is the hidden value that the backward pass needs of the step before

  // Which of the four saved values a gate's recurrent sum belongs to.
  static constexpr FUSED_RNN_DEVICE int saved_of(int gate) { return gate; }
  // The two biases of a gate belong to one sum.
  static constexpr bool kSplitBias = false;

  // Returns the new hidden value; steps `cell`; turns the four sums into gates.
  template <typename Math, typename V>
  static FUSED_RNN_DEVICE V forward(V (&sums)[4], V /*hidden*/, V& cell) {
    cells::LSTMGates<V> gates = {sums[0], sums[1], sums[2], sums[3]};
    const V hidden = cells::lstm_forward<Math>(gates, cell);
    sums[0] = gates.i, sums[1] = gates.f, sums[2] = gates.g, sums[3] = gates.o;
    return hidden;
  }

  // Turns the four gates into the gradients of their sums. `previous` and `cell` are cell values before and after;
  // `grad_hidden` becomes what goes past the weights to the hidden value before: nothing.
  template <typename Math, typename V>
  static FUSED_RNN_DEVICE void backward(V (&gates)[4], V previous, V cell, V& grad_hidden, V& grad_cell) {
    const auto grad = cells::lstm_backward<Math>(cells::LSTMGates<V>{gates[0], gates[1], gates[2], gates[3]}, previous,
                                                 cell, grad_hidden, grad_cell);
    gates[0] = grad.i, gates[1] = grad.f, gates[2] = grad.g, gates[3] = grad.o;
    grad_hidden = V(0);
  }
};

}  // namespace fused_rnn::cuda
