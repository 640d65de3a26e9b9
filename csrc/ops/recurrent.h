// What the glue of LSTM and GRU shares: one place for the checks of a layer's tensors and for filling in its params.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <vector>

#include "ops/dispatch.h"
#include "params/recurrent.h"

namespace fused_rnn::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The tensors of a layer, checked, and as the kernels read them: contiguous, and in the type that is computed in
// (float32 for the half precisions).
struct RecurrentLayer {
  at::ScalarType type;     // of the caller's tensors
  at::ScalarType compute;  // of everything below
  Tensor input, h0, c0;    // c0: only for the LSTM
  std::vector<Tensor> weights;
  Tensor batch_sizes, first_rows;  // only for packed input
  RecurrentSizes sizes;
  int64_t weights_per_direction;
  bool biased, projected;
  std::vector<int64_t> output_shape;

  at::TensorOptions options() const { return input.options(); }
  // Returns a tensor of the computed type as the caller gets it.
  Tensor for_caller(const Tensor& tensor) const { return type == compute ? tensor : tensor.to(type); }
  // Returns `tensor` contiguous and in the computed type.
  Tensor for_kernel(const Tensor& tensor) const {
    // A short call has many tensors: no dispatch for those that are ready.
    return tensor.scalar_type() == compute && tensor.is_contiguous() ? tensor : tensor.to(compute).contiguous();
  }
  // Returns a new tensor with the values of `tensor`, or zeros: a kernel will write into it.
  Tensor writable(const OptionalTensor& tensor, at::IntArrayRef shape) const;
  // Returns a tensor that forward left for backward, or a gradient, after checking its shape.
  Tensor saved(const Tensor& tensor, const char* name, at::IntArrayRef shape) const;
  // Returns an uninitialised tensor of the computed type.
  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, options()); }

  template <typename T>
  RecurrentWeights<T> weights_of(int64_t direction) const {
    const Tensor* w = weights.data() + direction * weights_per_direction;
    const auto at = [&](bool there, int64_t i) { return there ? w[i].const_data_ptr<T>() : nullptr; };
    return {at(true, 0), at(true, 1), at(biased, 2), at(biased, 3), at(projected, biased ? 4 : 2)};
  }
};

// Checks every tensor of a layer and returns them ready for a kernel. `gates` is 4 for the LSTM, 3 for the GRU; c0 is
// null for the GRU. Raises before any memory is touched; the message names the argument.
RecurrentLayer check_layer(int64_t gates, const Tensor& input, const Tensor& h0, const Tensor* c0,
                           at::TensorList weights, const OptionalTensor& batch_sizes);

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
