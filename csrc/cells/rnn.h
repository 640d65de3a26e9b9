// The plain recurrent network (Elman 1990), with tanh or with ReLU. cells.h says what each member of the struct means.

#pragma once

namespace fused_rnn::cells {

// What both have in common: one sum, and h, a function of it, which is all that the backward pass needs.
struct PlainRNN {
  static constexpr int kGates = 1;
  static constexpr int kSums = 1;
  static constexpr int kStates = 1;  // h
  static constexpr bool kReadsHidden = false;
  static constexpr int kOutputGate = -1;

  static constexpr int hidden_sum(int gate) { return gate; }
};

struct RNNTanh : PlainRNN {
  static constexpr const char* kName = "rnn_tanh";
  static constexpr bool bounded(int) { return true; }

  template <typename Math, typename V>
  static constexpr void forward(V (&values)[kSums], V (&states)[kStates]) {
    states[0] = values[0] = Math::tanh(values[0]);
  }

  template <typename Math, typename V>
  static constexpr void backward(V (&values)[kSums], const V (&)[kStates], const V (&)[kStates], V (&grads)[kStates]) {
    values[0] = grads[0] * (V(1) - values[0] * values[0]);
    grads[0] = V(0);
  }
};

struct RNNReLU : PlainRNN {
  static constexpr const char* kName = "rnn_relu";
  static constexpr bool bounded(int) { return false; }

  template <typename Math, typename V>
  static constexpr void forward(V (&values)[kSums], V (&states)[kStates]) {
    states[0] = values[0] = Math::relu(values[0]);
  }

  template <typename Math, typename V>
  static constexpr void backward(V (&values)[kSums], const V (&)[kStates], const V (&)[kStates], V (&grads)[kStates]) {
    values[0] = Math::relu_backward(values[0], grads[0]);
    grads[0] = V(0);
  }
};

}  // namespace fused_rnn::cells
