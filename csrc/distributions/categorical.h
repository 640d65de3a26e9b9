// A choice among outcomes whose probabilities are the softmax of scores divided by a temperature, as the kernels make
// it. fused_rnn/models/categorical.py defines the result.

#pragma once

namespace fused_rnn::distributions {

struct Categorical {
  // Returns the logarithm of an outcome's weight; its probability is that weight over the sum of all. Without the
  // largest score subtracted first, a tiny temperature would make all of them infinite.
  static constexpr double log_weight(double score, double largest, double temperature) {
    return (score - largest) / temperature;
  }

  // Whether the random number falls upon one of the first outcomes, whose weights add up to `sum`. The first outcome
  // for which this is true is chosen.
  static constexpr bool is_reached(double sum, double total, double uniform) { return sum > uniform * total; }
};

}  // namespace fused_rnn::distributions
