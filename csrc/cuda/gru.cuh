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
    cells::GRUGates<V> gates = {sums[0], sums[1], sums[2], sums[3]};
    const V next = cells::gru_forward<Math>(gates, hidden);
    sums[0] = gates.r, sums[1] = gates.z, sums[2] = gates.n, sums[3] = gates.hn;
    return next;
  }

  // `previous` is the hidden value before.
  template <typename Math, typename V>
  static FUSED_RNN_DEVICE void backward(V (&gates)[4], V previous, V /*cell*/, V& grad_hidden, V& /*grad_cell*/) {
    const auto grad =
        cells::gru_backward<Math>(cells::GRUGates<V>{gates[0], gates[1], gates[2], gates[3]}, previous, grad_hidden);
    gates[0] = grad.r, gates[1] = grad.z, gates[2] = grad.n, gates[3] = grad.hn;
  }
};

}  // namespace fused_rnn::cuda
