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
  static FUSED_RNN_DEVICE V forward(V (&sums)[4], V hidden, V& cell) {
    V states[2] = {hidden, cell};
    cells::LSTM::forward<Math>(sums, states);
    cell = states[1];
    return states[0];
  }

  // Turns the four gates into the gradients of their sums. `previous` and `cell` are cell values before and after;
  // `grad_hidden` becomes what goes past the weights to the hidden value before: nothing.
  template <typename Math, typename V>
  static FUSED_RNN_DEVICE void backward(V (&gates)[4], V previous, V cell, V& grad_hidden, V& grad_cell) {
    const V before[2] = {V(0), previous}, after[2] = {V(0), cell};
    V grads[2] = {grad_hidden, grad_cell};
    cells::LSTM::backward<Math>(gates, before, after, grads);
    grad_hidden = grads[0], grad_cell = grads[1];
  }
};

}  // namespace fused_rnn::cuda
