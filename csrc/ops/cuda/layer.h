// What the glue of LSTM and GRU does on a GPU: products through ATen, everything between them through cuda/recurrent.h.

#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/recurrent.h"
#include "ops/layer.h"

namespace fused_rnn::ops {

// A layer that was checked, with what the kernels need to know of it on the GPU.
struct CudaLayer {
  CudaLayer(cuda::Cell cell, const RecurrentLayer& layer, const OptionalTensor& lengths);

  const RecurrentLayer& layer;
  cuda::Cell cell;
  cuda::Element element;
  at::ScalarType state_type;                // of what is never rounded to the layer's type
  int64_t gates;                            // kGates of the cell
  bool allow_tf32;                          // float32 products may be rounded to tf32, as torch.backends.cudnn.rnn says
  Tensor lengths, batch_sizes, first_rows;  // on the GPU
  CudaSteps steps;
  void* stream;

  bool is_lstm() const { return cell == cuda::Cell::kLSTM; }
  Tensor empty_state(at::IntArrayRef shape) const { return at::empty(shape, layer.options().dtype(state_type)); }
  const Tensor& weight(int64_t direction, int64_t i) const {
    return layer.weights[direction * layer.weights_per_direction + i];
  }
  // Returns the product of two matrices of the layer's type, not rounded to it.
  Tensor product(const Tensor& a, const Tensor& b) const;
  // Writes it to `out`, of either type; or adds it to what is there, of the layer's type.
  void multiply(Tensor out, const Tensor& a, const Tensor& b, bool add = false) const;
  // Whether the stepwise path rounds nothing of the gates to half precision: it keeps the input's part of their sums
  // for a few steps at a time, computes the gates anew in backward, and keeps what rounding leaves out of their
  // gradients. Saved gates near 0 and 1 leave little of a gradient that contains gate * (1 - gate). Where the errors of
  // many units average out that is not seen, and products of small layers cost nothing but their launch.
  bool precise() const {
    return cuda::precise_if_stepwise(layer.sizes.hidden_size, static_cast<int>(layer.input.element_size()));
  }
  // [time, batch, 1]: which sequences have which steps; with lengths only.
  Tensor running() const;

  // What the persistent kernels would be given, perhaps padded, and how they would share it out; blocks == 0 if they
  // cannot.
  cuda::PersistentProblem problem(bool backward) const;
  PersistentPlan plan(const cuda::PersistentProblem& problem) const;
};

// What forward writes, and backward reads.
struct CudaStates {
  Tensor output, h_n, c_n, gates, cells;
};
// What backward is given, undefined for zero, and what it writes: of h0 and c0 on the stepwise path only what is
// defined.
struct CudaGradients {
  Tensor output, cells, h_n, c_n;
  Tensor h0, c0;
  Tensor gates;      // [directions, rows, 4 * hidden_size]; or twice as wide, with what rounding left out behind them
  Tensor projected;  // [directions, rows, output_size]: of the output values; with a projection only
  Tensor before[2];  // what hidden_before() returns, where it was needed
};

// Returns a pointer to the data; null for an undefined tensor.
inline void* data_of(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

// The stream of a GPU that kernels are to be launched on. tests/cuda_on_host/ has twins for the CPU of this and of the
// next two.
void* current_stream(at::Device device);

// A product of float32 matrices that lie by columns, as BLAS has it: c [m, n] = a [m, k] b [k, n] + beta c, where a and
// b may be given transposed.
struct Gemm {
  bool transpose_a, transpose_b;
  int m, n, k;
  const float* a;
  int lda;
  const float* b;
  int ldb;
  float beta;
  float* c;
  int ldc;
};
// Whether torch brings cuBLAS, as its CUDA builds do; and the product by it, with tf32, on the current stream.
bool finds_cublas();
void gemm_tf32(const Gemm& gemm);

// Raises what a kernel's launch returned, if that is not null.
void check_launch(const char* error);

// All steps in one kernel. states.gates hold the input's part on entry. Backward sets the gradients of gates, h0 and
// c0.
void persistent_forward(const CudaLayer& cuda, const PersistentPlan& plan, int64_t hidden_size, CudaStates& states,
                        bool save_for_backward);
void persistent_backward(const CudaLayer& cuda, const PersistentPlan& plan, int64_t hidden_size,
                         const CudaStates& states, CudaGradients& gradients);

// All steps, one product and one kernel each: any size and type. states.gates hold the input's part on entry, if not
// precise().
void stepwise_forward(const CudaLayer& cuda, CudaStates& states, bool save_for_backward);
void stepwise_backward(const CudaLayer& cuda, const CudaStates& states, CudaGradients& gradients);

// The hidden values before each row of a direction, [rows, output_size]; zero in the padding.
Tensor hidden_before(const CudaLayer& cuda, const Tensor& output, int64_t direction);

// The gradient of the layer's input from those of the gates' sums.
Tensor input_gradient(const CudaLayer& cuda, const CudaGradients& gradients);

// The gradients of the layer's weights from those of the gates' sums.
std::vector<Tensor> weight_gradients(const CudaLayer& cuda, const CudaStates& states, const CudaGradients& gradients);

// Whether float32 products may be rounded to tf32: as torch.backends.cudnn says of recurrent networks.
bool tf32_allowed();

// Which plans the persistent kernels may use; for tests and tuning. For all threads, not to be changed during a call.
cuda::PlanOverride& current_plan_override();

}  // namespace fused_rnn::ops
