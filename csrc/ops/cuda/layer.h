// A recurrent layer on its GPU: what the products and the kernels of every path need to know of it.

#pragma once

#include <ATen/ops/empty.h>

#include "cuda/recurrent.h"
#include "ops/layer.h"

namespace fused_rnn::ops {

// A checked layer, made ready for the kernels.
struct CudaLayer {
  explicit CudaLayer(const RecurrentLayer& given);
  // Returns the same layer with tensors of float32, none of whose products are rounded to tf32.
  CudaLayer widened() const;

  RecurrentLayer layer;  // with dense tensors; one step without time and direction is a sequence of length one
  cuda::Element element;
  at::ScalarType state_type;                // of what is never rounded to the layer's type: float32, or float64
  bool allow_tf32;                          // whether products of float32 may be rounded to tf32
  bool exact_float32;                       // whether the caller's layer is of float32 and its products are not rounded
  Tensor lengths, batch_sizes, first_rows;  // those of `layer`, on the GPU
  CudaSteps steps;
  Tensor begins;  // [directions, rows], bool: see Resets; false where a sequence has no step; undefined without resets
  void* stream;

  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, layer.input.options()); }
  Tensor empty_state(at::IntArrayRef shape) const { return at::empty(shape, layer.input.options().dtype(state_type)); }
  // How many rows a weight has for the gates of all hidden units.
  int64_t gates_size() const { return layer.cell.gates * layer.sizes.hidden_size; }
  // Whether the stepwise path computes this layer in float32, though its tensors are of half precision. Saved gates
  // near 0 and 1 leave little of a gradient that contains gate * (1 - gate), so rounding them spoils it. The errors of
  // many units average out, but small layers need this.
  bool stepwise_in_float32() const;
  // The type in which cell states are saved for backward: that of the layer, or float32 for the small layers above, for
  // which rounding them spoils gradients, too. It must not depend on the path, since tracing does not know that.
  at::ScalarType history_type() const { return stepwise_in_float32() ? state_type : layer.type; }
  // What the kernels are told of `begins`.
  Resets resets() const;
  // Returns, where hidden values are replaced, the new ones, as rows of [rows, output_size] for all rows of a
  // direction; others of these rows have any values.
  Tensor replacing_hidden(int64_t direction) const;
  // Returns which sequences have which steps, [time, batch, 1]; only for a layer with lengths.
  Tensor running() const;
};

// The gradients that running the steps backwards leaves; the products with input, weights and hidden values follow.
struct StepGradients {
  Tensor gates;             // of the gates' sums, [directions, rows, sums * hidden_size]
  Tensor projected;         // of the output values, [directions, rows, output_size]; undefined without a projection
  Tensor h0, c0;            // of the initial states, shaped like them; undefined if not wanted
  Tensor reset_h, reset_c;  // of the states that replace others, shaped like them, in the state type; undefined if
                            // there are none, or if not wanted
};

// Returns, for packed rows, the index of the hidden values before each row of a direction: in the output's rows with h0
// behind them.
Tensor packed_sources(const CudaLayer& cuda, int64_t direction);

// Returns a tensor of a list; an undefined one behind its end, as for the cell state of a cell that has none.
inline Tensor get(const std::vector<Tensor>& tensors, size_t i) { return i < tensors.size() ? tensors[i] : Tensor(); }

// Returns a pointer to the data; null for an undefined tensor.
inline void* data_of(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

// Converts those tensors that are defined to a type, all of them with one launch.
void convert(const std::vector<Tensor*>& tensors, at::ScalarType type);

// Raises what a kernel's launch returned, if that is not null.
void check_launch(const char* error);

}  // namespace fused_rnn::ops
