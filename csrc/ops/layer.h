// The arguments of the recurrent operators, checked and named, on which the code of every device builds.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "cells/cells.h"
#include "ops/dtype.h"
#include "params/cuda_steps.h"
#include "params/layer.h"

namespace fused_rnn::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = c10::List<OptionalTensor>;
using fused_rnn::kMostUnitsInFloat32;

// The weights of one direction, or their gradients. gates * hidden_size is the first dimension of all but weight_hr.
struct DirectionWeights {
  Tensor weight_ih;  // [gates * hidden_size, input_size]
  Tensor weight_hh;  // [gates * hidden_size, output_size]
  Tensor bias_ih;    // [gates * hidden_size], undefined without biases
  Tensor bias_hh;    // [gates * hidden_size], undefined without biases
  Tensor weight_hr;  // [output_size, hidden_size], undefined without a projection

  // Calls body(weight) for each defined weight, in the order in which the operators take them.
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
  at::ScalarType type;  // the dtype of all tensors that the caller gives
  bool one_step;        // whether input and states are [batch, size]: one step of one direction
  bool biased, projected;
  Tensor input;
  std::vector<Tensor> states;  // the initial states: h0 [directions, batch, output_size], and for each further state of
                               // the cell [directions, batch, hidden_size]
  DirectionWeights weights[2];
  FrozenWeights frozen = {};       // the packed weights of a frozen layer, which has no others
  Tensor lengths;                  // [batch], on the device of the input; undefined if all sequences have all steps
  Tensor batch_sizes, first_rows;  // [time], on the CPU; undefined unless the input is packed
  Tensor resets;  // [time, batch] or [rows], bool, on the device of the input: before which steps the states are
                  // replaced; undefined if none are
  std::vector<Tensor> reset_states;  // what replaces them, each shaped like its state, or [time, ...] of that; empty
                                     // for zero
  RecurrentSizes sizes;              // of the padded or packed input; lengths do not change them

  const Tensor& h0() const { return states[0]; }
  // The initial cell state; undefined for a cell without one.
  Tensor c0() const { return states.size() > 1 ? states[1] : Tensor(); }
  // The number of batch rows of all steps together.
  int64_t rows() const { return sizes.steps.rows(); }
  // Whether each step has states of its own that replace others.
  bool every_step_has_reset_states() const { return !reset_states.empty() && reset_states[0].dim() > states[0].dim(); }
  // Whether the layer has no hidden unit, which only one step may: torch.nn's cells can have a hidden size of 0.
  bool without_units() const { return sizes.hidden_size == 0 && sizes.output_size == 0; }
  // The shapes of the output, of the gates saved for backward, and of a cell state's values after each step.
  std::vector<int64_t> output_shape() const;
  std::vector<int64_t> gates_shape() const { return {sizes.directions, rows(), cell.sums * sizes.hidden_size}; }
  std::vector<int64_t> history_shape() const { return {sizes.directions, rows(), sizes.hidden_size}; }
  // The dtype in which the kernels sum, and in which those for a CPU save the history.
  at::ScalarType accumulation_type() const { return ops::accumulation_type(type); }
};

// Returns the cell with this name. Raises a ValueError that lists all names if there is none.
cells::Kind kind_of(std::string_view name);

// Lets the values of lengths be checked on every device from now on, for all threads; else only on the CPU, since
// reading them from another device waits for it. The kernels take a length that is too large for the number of steps,
// and a negative one for 0.
void set_debug(bool enabled);

// Checks every tensor of a layer before any of its values is read; an error message names the argument.
RecurrentLayer check_layer(std::string_view cell, const Tensor& input, at::TensorList states, at::TensorList weights,
                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                           const OptionalTensor& resets, at::TensorList reset_states);
// The same for a layer whose weights are packed.
RecurrentLayer check_layer_without_weights(cells::Kind kind, const Tensor& input, at::TensorList states,
                                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                           const OptionalTensor& resets, at::TensorList reset_states);
// Returns initial states of zero for a cell: h of output_size values, and further states of hidden_size; each is
// [rows, batch, size] for so many layers and directions, or [batch, size] for one step. States of the same size are one
// tensor.
std::vector<Tensor> zero_states(const cells::Description& cell, const Tensor& input, int64_t rows, int64_t batch,
                                int64_t output_size, int64_t hidden_size, bool one_step);
// Assigns the weights of a layer, whose sizes are known, to their names, and checks their shapes.
void check_weights(RecurrentLayer& layer, at::TensorList weights);

// What the forward pass returns. Without save_for_backward, gates and history are of shape [0].
struct RecurrentOutputs {
  Tensor output;                // of layer.output_shape()
  std::vector<Tensor> states;   // the final states, of the same shapes as layer.states
  Tensor gates;                 // of layer.gates_shape()
  std::vector<Tensor> history;  // for each state but h, its values after each step, of layer.history_shape()
};

// The gradients that the backward pass starts from, of checked shapes; each is undefined if it is zero.
struct RecurrentGradients {
  Tensor output;                // the gradient of the output
  std::vector<Tensor> states;   // the gradients of the final states
  std::vector<Tensor> history;  // the gradients of the history
};
// The results of the forward pass that the backward pass needs, of checked shapes.
struct RecurrentSaved {
  Tensor output;  // may be undefined if there is one step: its previous hidden values are h0
  Tensor gates;
  std::vector<Tensor> history;
};
// Which gradients the backward pass must compute; those of the states are for initial and reset states.
struct Wanted {
  bool input, states, weights;
};

// What the backward pass returns. Gradients of input and states that are not wanted are of shape [0]; those of weights
// are undefined.
struct RecurrentInputGradients {
  Tensor input;
  std::vector<Tensor> states;
  std::vector<Tensor> reset_states;  // shaped like the layer's
  DirectionWeights weights[2];
};

// Raises a RuntimeError unless `tensor` has the expected shape.
void check_shape(const Tensor& tensor, const char* name, at::IntArrayRef expected);

}  // namespace fused_rnn::ops
