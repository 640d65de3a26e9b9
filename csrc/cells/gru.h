// One step of a GRU (Cho et al. 2014) with the reset gate after the recurrent product, as torch.nn and cuDNN have it,
// for any value type V: a number or a vector of numbers. Math gives sigmoid and tanh of V.

#pragma once

namespace fused_rnn::cells {

template <typename V>
struct GRUGates {
  V r, z, n, hn;  // reset, update, candidate, and the recurrent part of the candidate's sum
};

// Turns the gates' sums (n: the input's part alone) into gates; returns the new hidden value.
template <typename Math, typename V>
constexpr V gru_forward(GRUGates<V>& gates, V previous_hidden) {
  gates.r = Math::sigmoid(gates.r);
  gates.z = Math::sigmoid(gates.z);
  gates.n = Math::tanh(gates.n + gates.r * gates.hn);
  return gates.n + gates.z * (previous_hidden - gates.n);
}

// Returns the gradients of the gates' sums (n: the input's part, hn: the recurrent part), given the gradient of the
// hidden value, which becomes the part of the previous hidden value's gradient that does not pass the weights.
template <typename Math, typename V>
constexpr GRUGates<V> gru_backward(const GRUGates<V>& gates, V previous_hidden, V& grad_hidden) {
  const V one(1);
  const V grad_n = grad_hidden * (one - gates.z) * (one - gates.n * gates.n);
  const GRUGates<V> grad = {
      grad_n * gates.hn * gates.r * (one - gates.r),
      grad_hidden * (previous_hidden - gates.n) * gates.z * (one - gates.z),
      grad_n,
      grad_n * gates.r,
  };
  grad_hidden = grad_hidden * gates.z;
  return grad;
}

}  // namespace fused_rnn::cells
