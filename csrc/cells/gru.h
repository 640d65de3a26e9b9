// The GRU (Cho et al. 2014) with the reset gate applied after the recurrent product, as in torch.nn and cuDNN. cells.h
// says what each member of the struct means.

#pragma once

namespace fused_rnn::cells {

struct GRU {
  static constexpr const char* kName = "gru";
  static constexpr int kGates = 3;   // reset, update, candidate
  static constexpr int kSums = 4;    // of r; of z; the input's part of n's; the recurrent part of n's
  static constexpr int kStates = 1;  // h
  static constexpr bool kReadsHidden = true;
  static constexpr int kOutputGate = -1;

  static constexpr int hidden_sum(int gate) { return gate == 2 ? 3 : gate; }
  static constexpr bool bounded(int sum) { return sum != 3; }

  template <typename Math, typename V>
  static constexpr void forward(V (&values)[kSums], V (&states)[kStates]) {
    auto& [r, z, n, hn] = values;
    auto& [h] = states;
    r = Math::sigmoid(r);
    z = Math::sigmoid(z);
    n = Math::tanh(n + r * hn);
    h = n + z * (h - n);
  }

  template <typename Math, typename V>
  static constexpr void backward(V (&values)[kSums], const V (&before)[kStates], const V (&)[kStates],
                                 V (&grads)[kStates]) {
    auto& [r, z, n, hn] = values;
    auto& [grad_h] = grads;
    const V one(1);
    // A gradient is multiplied by the derivative of a gate first; see lstm.h.
    const V grad_n = grad_h * (one - z) * (one - n * n);
    const V grad_r = grad_n * (r * (one - r)) * hn;
    const V grad_z = grad_h * (z * (one - z)) * (before[0] - n);
    const V grad_hn = grad_n * r;
    grad_h = grad_h * z;
    r = grad_r, z = grad_z, n = grad_n, hn = grad_hn;
  }
};

}  // namespace fused_rnn::cells
