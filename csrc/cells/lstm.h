// The LSTM (Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000). cells.h says what each
// member of the struct means.

#pragma once

namespace fused_rnn::cells {

struct LSTM {
  static constexpr const char* kName = "lstm";
  static constexpr int kGates = 4;
  static constexpr int kSums = 4;    // input, forget, cell candidate and output gate
  static constexpr int kStates = 2;  // h and c
  static constexpr bool kReadsHidden = false;
  static constexpr int kOutputGate = 3;

  static constexpr int hidden_sum(int gate) { return gate; }
  static constexpr bool bounded(int) { return true; }

  template <typename Math, typename V>
  static constexpr void forward(V (&values)[kSums], V (&states)[kStates]) {
    auto& [i, f, g, o] = values;
    auto& [h, c] = states;
    i = Math::sigmoid(i);
    f = Math::sigmoid(f);
    g = Math::tanh(g);
    o = Math::sigmoid(o);
    c = f * c + i * g;
    h = o * Math::tanh(c);
  }

  template <typename Math, typename V>
  static constexpr void backward(V (&values)[kSums], const V (&before)[kStates], const V (&after)[kStates],
                                 V (&grads)[kStates]) {
    auto& [i, f, g, o] = values;
    auto& [grad_h, grad_c] = grads;
    const V one(1), tanh_c = Math::tanh(after[1]);
    // A gradient is multiplied by the derivative of a gate first, which is zero where the gate is saturated: the
    // product of a gradient and a large state may be infinite, and infinity times zero is NaN.
    grad_c = grad_c + grad_h * o * (one - tanh_c * tanh_c);
    const V grad_i = grad_c * (i * (one - i)) * g;
    const V grad_f = grad_c * (f * (one - f)) * before[1];
    const V grad_g = grad_c * i * (one - g * g);
    const V grad_o = grad_h * (o * (one - o)) * tanh_c;
    grad_h = V(0);
    grad_c = grad_c * f;
    i = grad_i, f = grad_f, g = grad_g, o = grad_o;
  }
};

}  // namespace fused_rnn::cells
