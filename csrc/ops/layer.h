// A recurrent layer as the operators get it: its tensors, checked and named. Every device starts from this.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "cells/cells.h"
#include "params/layer.h"

namespace fused_rnn::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = c10::List<OptionalTensor>;

// The weights of one direction, or their gradients. gates * hidden_size is the first dimension of all but weight_hr.
struct DirectionWeights {
  Tensor weight_ih;  // [gates * hidden_size, input_size]
  Tensor weight_hh;  // [gates * hidden_size, output_size]
  Tensor bias_ih;    // [gates * hidden_size], undefined without biases
  Tensor bias_hh;    // likewise
  Tensor weight_hr;  // [output_size, hidden_size], undefined without a projection

  // Calls body(weight) for each that is defined, in the order in which the operators take them.
  template <typename Body>
  void for_each(const Body& body) {
    for (Tensor* weight : {&weight_ih, &weight_hh, &bias_ih, &bias_hh, &weight_hr})
      if (weight->defined()) body(*weight);
  }
  template <typename Body>
  void for_each(const Body& body) const {
    const_cast<DirectionWeights*>(this)->for_each([&](const Tensor& weight) { body(weight); });
  }
};

struct RecurrentLayer {
  cells::Kind kind;
  cells::Description cell;
  at::ScalarType type;  // of all tensors
  bool one_step;        // whether input and states are [batch, size]: one step of one direction
  bool biased, projected;
  Tensor input;
  std::vector<Tensor> states;  // the initial ones: h0 [directions, batch, output_size], and for each further state of
                               // the cell [directions, batch, hidden_size]
  DirectionWeights weights[2];
  Tensor lengths;                  // [batch], undefined without; on the device of the input
  Tensor batch_sizes, first_rows;  // [time], on the CPU; undefined unless the input is packed
  RecurrentSizes sizes;            // of the layer as it is given: lengths change nothing of it

  const Tensor& h0() const { return states[0]; }
  // The initial cell state; undefined for a cell without one.
  Tensor c0() const { return states.size() > 1 ? states[1] : Tensor(); }
  // How many rows the arrays of all steps have.
  int64_t rows() const { return sizes.steps.rows(); }
  // The shapes of the output; of the saved gates; and of a cell state after each step.
  std::vector<int64_t> output_shape() const;
  std::vector<int64_t> gates_shape() const { return {sizes.directions, rows(), cell.sums * sizes.hidden_size}; }
  std::vector<int64_t> history_shape() const { return {sizes.directions, rows(), sizes.hidden_size}; }
};

// Returns the cell of a name; raises a ValueError that lists all names if there is none.
cells::Kind kind_of(std::string_view name);

// Checks every tensor of a layer, before any memory is touched; the message names the argument. Lengths on another
// device than the CPU are not read.
RecurrentLayer check_layer(std::string_view cell, const Tensor& input, at::TensorList states, at::TensorList weights,
                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths);

// What the forward pass returns. What is not saved is of shape [0].
struct RecurrentOutputs {
  Tensor output;                // of layer.output_shape()
  std::vector<Tensor> states;   // the final ones, shaped like layer.states
  Tensor gates;                 // of layer.gates_shape()
  std::vector<Tensor> history;  // for each state but h its values after each step, of layer.history_shape()
};

// What the backward pass is given besides the layer, checked against it.
struct RecurrentGradients {
  Tensor output;                // of the output; undefined for zero, as all of these
  std::vector<Tensor> states;   // of the final states
  std::vector<Tensor> history;  // of the history
};
struct RecurrentSaved {
  Tensor output, gates;
  std::vector<Tensor> history;
};
struct Wanted {
  bool input, states, weights;
};

// What the backward pass returns. What is not wanted is of shape [0], and of the weights undefined.
struct RecurrentInputGradients {
  Tensor input;
  std::vector<Tensor> states;
  DirectionWeights weights[2];
};

// Raises a RuntimeError unless `tensor` has the shape.
void check_shape(const Tensor& tensor, const char* name, at::IntArrayRef expected);

}  // namespace fused_rnn::ops
