// What the glue of LSTM and GRU shares: one place for the checks of a layer's tensors and for filling in its params.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <vector>

#include "ops/dispatch.h"
#include "params/layer.h"

namespace fused_rnn::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The tensors of a layer, checked, and as the kernels read them: contiguous, and in the type that is computed in
// (float32 for the half precisions). A padded batch with lengths becomes a packed one: the kernels get its sequences
// sorted by decreasing length, and no rows of its padding.
struct RecurrentLayer {
  at::ScalarType type;     // of the caller's tensors
  at::ScalarType compute;  // of everything below
  Tensor input, h0, c0;    // c0: only for the LSTM
  std::vector<Tensor> weights;
  Tensor batch_sizes, first_rows;  // only for packed input, or with lengths
  Tensor sequences;  // only with lengths: [batch], which of the caller's sequences the kernels' sequence is
  Tensor rows;       // only with lengths: [rows], where in the caller's time * batch rows the kernels' row lies
  RecurrentSizes sizes;
  int64_t weights_per_direction;
  bool biased, projected;
  std::vector<int64_t> output_shape;         // as the caller sees it
  std::vector<int64_t> kernel_output_shape;  // the same, but for lengths: [rows, directions * output_size]

  at::TensorOptions options() const { return input.options(); }
  // Returns a tensor of the computed type as the caller gets it.
  Tensor for_caller(const Tensor& tensor) const { return type == compute ? tensor : tensor.to(type); }
  // Returns `tensor` contiguous and in the computed type.
  Tensor for_kernel(const Tensor& tensor) const {
    // A short call has many tensors: no dispatch for those that are ready.
    return tensor.scalar_type() == compute && tensor.is_contiguous() ? tensor : tensor.to(compute).contiguous();
  }
  // Returns the caller's rows, [time, batch, size] for dim 0 or [directions, time * batch, size] for dim 1, without
  // those of the padding; and the kernels' rows with zero in the padding's place. Nothing to do without lengths.
  Tensor without_padding(const Tensor& tensor, int64_t dim = 0) const;
  Tensor with_padding(const Tensor& tensor, int64_t dim = 0) const;
  // Returns states, [directions, batch, size], in the order of the kernels' sequences or back in that of the caller's.
  Tensor sorted(const Tensor& state) const { return sequences.defined() ? state.index_select(1, sequences) : state; }
  Tensor unsorted(const Tensor& state) const;
  // How many rows the caller's arrays have.
  int64_t caller_rows() const { return rows.defined() ? sizes.steps.time * sizes.steps.batch : sizes.steps.rows(); }
  // Returns a new state on the CPU, sorted, with the values of `tensor`, or zeros: a kernel will write into it.
  Tensor writable(const OptionalTensor& tensor, at::IntArrayRef shape) const;
  // Returns rows that forward left for backward, or gradients of rows, after checking their shape. An optional one
  // may be undefined.
  Tensor saved_rows(const OptionalTensor& tensor, const char* name, at::IntArrayRef shape, int64_t dim) const;
  // Returns the gradient of the input or of a state as the caller gets it: of shape [0] if it is not wanted.
  Tensor input_gradient(const Tensor& gradient, bool wanted) const;
  Tensor state_gradient(const Tensor& gradient, bool wanted) const;
  // Returns an array for the gates of every row, and checks that it has its shape in backward. With lengths the kernels
  // use the first part of it, as if it had just their rows, so that its shape does not depend on the lengths' values.
  Tensor empty_gates(bool wanted) const;
  Tensor saved_gates(const Tensor& gates) const;
  // Returns an uninitialised tensor of the computed type.
  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, options()); }

  // The weights as a forward kernel on a CPU takes them; see check_layer().
  template <typename T>
  StoredWeights<T> stored_weights_of(int64_t direction) const {
    const Tensor* w = weights.data() + direction * weights_per_direction;
    const auto stored = type == compute         ? Stored::kComputed
                        : type == at::kBFloat16 ? Stored::kBFloat16
                                                : Stored::kFloat16;
    const auto at = [&](bool there, int64_t i) { return there ? w[i].const_data_ptr() : nullptr; };
    const auto bias = [&](int64_t i) { return biased ? w[i].const_data_ptr<T>() : nullptr; };
    return {at(true, 0), at(true, 1), at(projected, biased ? 4 : 2), bias(2), bias(3), stored};
  }
  template <typename T>
  RecurrentWeights<T> weights_of(int64_t direction) const {
    const Tensor* w = weights.data() + direction * weights_per_direction;
    const auto at = [&](bool there, int64_t i) { return there ? w[i].const_data_ptr<T>() : nullptr; };
    return {at(true, 0), at(true, 1), at(biased, 2), at(biased, 3), at(projected, biased ? 4 : 2)};
  }
};

// In which type a kernel takes the tensors of half precision.
enum class Takes {
  kWidened,         // all in float32
  kStoredMatrices,  // the same, but matrices of weights as they are stored
  kStored,          // all as they are stored, as the kernels for a GPU do, which also take lengths as they come
};

// Checks every tensor of a layer and returns them ready for a kernel. `gates` is 4 for the LSTM, 3 for the GRU; c0 is
// null for the GRU. Input and states of 2 dimensions, [batch, size], are one step of one direction. Lengths on another
// device than the CPU are not read. Raises before any memory is touched; the message names the argument.
RecurrentLayer check_layer(int64_t gates, const Tensor& input, const Tensor& h0, const Tensor* c0,
                           at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                           Takes takes = Takes::kWidened);

// Returns uninitialised gradients shaped like the weights of the layer; none if they are not wanted.
std::vector<Tensor> empty_weight_gradients(const RecurrentLayer& layer, bool wanted);

template <typename T>
RecurrentWeightGradients<T> gradients_of(const RecurrentLayer& layer, std::vector<Tensor>& gradients,
                                         int64_t direction) {
  Tensor* g = gradients.data() + direction * layer.weights_per_direction;
  const auto at = [&](bool there, int64_t i) { return there ? g[i].mutable_data_ptr<T>() : nullptr; };
  const bool wanted = !gradients.empty();
  return {at(wanted, 0), at(wanted, 1), at(wanted && layer.biased, 2), at(wanted && layer.biased, 3),
          at(wanted && layer.projected, layer.biased ? 4 : 2)};
}

// Calls body(T()) with the computed type.
template <typename Body>
void for_type(at::ScalarType compute, const Body& body) {
  compute == at::kDouble ? body(double()) : body(float());
}

// Returns null for a tensor without elements.
template <typename T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() && tensor.numel() > 0 ? tensor.mutable_data_ptr<T>() : nullptr;
}

}  // namespace fused_rnn::ops
