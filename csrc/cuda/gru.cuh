// What a GRU's step adds to the loops over a recurrent layer on a GPU.

#pragma once

#include "cells/gru.h"
#include "cuda/kit/platform.cuh"

namespace fused_rnn::cuda {

struct GRUCell {
  static constexpr int kGates = 3;
  static constexpr bool kHasCell = false;

  // The sums are those of r, of z, of the input's and of the recurrent part of n.
  static constexpr FUSED_RNN_DEVICE int saved_of(int gate) { return gate == 2 ? 3 : gate; }
  static constexpr bool kSplitBias = true;

  template <typename Math, typename V>
  static FUSED_RNN_DEVICE V forward(V (&sums)[4], V hidden, V& /*cell*/) {
    V states[1] = {hidden};
    cells::GRU::forward<Math>(sums, states);
    return states[0];
  }

  // `previous` is the hidden value before.
  template <typename Math, typename V>
  static FUSED_RNN_DEVICE void backward(V (&gates)[4], V previous, V /*cell*/, V& grad_hidden, V& /*grad_cell*/) {
    const V before[1] = {previous};
    V grads[1] = {grad_hidden};
    cells::GRU::backward<Math>(gates, before, before, grads);
    grad_hidden = grads[0];
  }
};

}  // namespace fused_rnn::cuda
