// Recurrent layers on the CPU: converts the arguments to what the kernels read, allocates the results and calls the
// kernels.

#include "ops/recurrent_cpu.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cstring>

#include "cpu/recurrent.h"
#include "ops/dispatch.h"
#include "ops/memory.h"

namespace fused_rnn::ops {
namespace {

enum class Pass { kForward, kFrozen, kBackward };

// A layer as the kernels of a pass read it. All tensors are contiguous. A padded batch with lengths is turned into a
// packed one: its sequences sorted by decreasing length, without padding.
class CpuLayer {
 public:
  // The tensors are of the type of the computation, which is float32 for the half precisions, with these exceptions:
  // weight matrices of the forward pass keep the type of the layer, since its kernels widen them themselves; and what
  // the kernels read as Stored, see params/layer.h, is of type `stored`.
  CpuLayer(const RecurrentLayer& layer, Pass pass)
      : layer_(layer),
        compute(layer.accumulation_type()),
        stored(pass == Pass::kFrozen ? compute : saved_on_cpu(layer.type)),
        hidden_type(pass == Pass::kBackward ? stored : compute),
        sizes(layer.sizes) {
    if (layer.lengths.defined()) pack();
    input = for_kernel(without_padding(layer.input, 0), stored);
    for (const Tensor& state : layer.states) states.push_back(state_for_kernel(state, states.size()));
    if (layer.resets.defined()) set_resets();
    for (int64_t d = 0; d < sizes.directions; ++d) {
      weights[d] = layer.weights[d];
      weights[d].for_each([&](Tensor& weight) {
        const bool is_hr = &weight == &weights[d].weight_hr;
        const at::ScalarType of_matrix = pass != Pass::kBackward ? layer.type : is_hr ? compute : stored;
        weight = for_kernel(weight, weight.dim() == 2 ? of_matrix : compute);
      });
    }
  }

  // Returns `tensor` contiguous and of a type. A tensor that already is both is returned without a call of the
  // dispatcher, which could take longer than a small layer.
  static Tensor for_kernel(const Tensor& tensor, at::ScalarType type) {
    return tensor.scalar_type() == type && tensor.is_contiguous() ? tensor : tensor.to(type).contiguous();
  }
  // The same for state number `index` of the cell, or what replaces it.
  Tensor state_for_kernel(const Tensor& state, size_t index) const {
    return for_kernel(sorted(state), index == 0 ? hidden_type : compute);
  }
  // Returns a result in the type of the layer.
  Tensor for_caller(const Tensor& tensor) const {
    return tensor.scalar_type() == layer_.type ? tensor : tensor.to(layer_.type);
  }
  // Returns an uninitialised tensor, in the type of the computation or another one.
  Tensor empty(at::IntArrayRef shape) const { return empty(shape, compute); }
  Tensor empty(at::IntArrayRef shape, at::ScalarType type) const {
    return with_huge_pages(at::empty(shape, input.options().dtype(type)));
  }

  // Returns the caller's rows, [time, batch, size] for dim 0 or [directions, time * batch, size] for dim 1, in the
  // order of the packed batch, without padding; with_padding() is the inverse, with zeros in the padding. Without
  // lengths both return the tensor itself.
  Tensor without_padding(const Tensor& tensor, int64_t dim) const {
    if (!rows_.defined()) return tensor;
    return (dim == 0 ? tensor.flatten(0, 1) : tensor).index_select(dim, rows_);
  }
  Tensor with_padding(const Tensor& tensor, int64_t dim) const {
    if (!rows_.defined()) return tensor;
    const Steps& steps = sizes.steps;
    const int64_t first = dim == 0 ? steps.time : sizes.directions, second = dim == 0 ? steps.batch : layer_.rows();
    const Tensor padded = at::zeros({first, second, tensor.size(-1)}, tensor.options());
    (dim == 0 ? padded.flatten(0, 1) : padded).index_copy_(dim, rows_, tensor);
    return padded;
  }
  // Returns states, [..., batch, size], with sequences in the packed batch's order; unsorted() is the inverse.
  Tensor sorted(const Tensor& state) const { return sequences_.defined() ? state.index_select(-2, sequences_) : state; }
  Tensor unsorted(const Tensor& state) const {
    return sequences_.defined() ? at::empty_like(state).index_copy_(-2, sequences_, state) : state;
  }
  // Returns rows of the caller, shaped as for without_padding(), as the kernels read them; undefined if they are
  // undefined.
  Tensor rows_for_kernel(const Tensor& tensor, int64_t dim, at::ScalarType type) const {
    return tensor.defined() ? for_kernel(without_padding(tensor, dim), type) : tensor;
  }
  // Returns a copy of a state for a kernel to overwrite, with sequences in the packed batch's order; zeros if it is
  // undefined.
  Tensor writable(const Tensor& tensor, at::IntArrayRef shape) const {
    if (!tensor.defined()) return at::zeros(shape, input.options().dtype(compute));
    if (sequences_.defined() || tensor.scalar_type() != compute || !tensor.is_contiguous())
      return sorted(tensor).to(compute, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
    Tensor copy = empty(shape);
    if (copy.numel() > 0) std::memcpy(copy.mutable_data_ptr(), tensor.const_data_ptr(), copy.nbytes());
    return copy;
  }

  // The shape of the output that the kernels write: the caller's, or with lengths [rows, directions * output_size].
  std::vector<int64_t> output_shape() const {
    if (rows_.defined()) return {sizes.steps.rows(), sizes.directions * sizes.output_size};
    return layer_.output_shape();
  }
  // Returns an array for the gates of every row of the caller, so that its shape does not depend on the values of the
  // lengths. With lengths the kernels use only its beginning, as an array of the packed rows; the rest is zero.
  Tensor empty_gates() const {
    Tensor gates = empty(layer_.gates_shape(), stored);
    const int64_t used = sizes.directions * sizes.steps.rows() * gates.size(2);
    if (rows_.defined()) gates.flatten().narrow(0, used, gates.numel() - used).zero_();
    return gates;
  }

 private:
  const RecurrentLayer& layer_;

 public:
  const at::ScalarType compute;
  const at::ScalarType stored;       // of the arrays that params/layer.h calls Stored
  const at::ScalarType hidden_type;  // of h0 and of what replaces it
  Tensor input;
  std::vector<Tensor> states;
  DirectionWeights weights[2];
  RecurrentSizes sizes;  // of the packed batch if there are lengths
  Resets resets = {};
  std::vector<Tensor> reset_states;  // empty without resets, else what replaces each state

  // Sets what the params of both passes have of the resets.
  template <typename Params>
  void set_resets_of(Params& params) const {
    const auto set = [](auto*& pointer, const Tensor& state) {
      pointer = state.const_data_ptr<std::remove_const_t<std::remove_reference_t<decltype(*pointer)>>>();
    };
    params.resets = resets;
    if (!reset_states.empty()) set(params.reset_h, reset_states[0]);
    if (reset_states.size() > 1) set(params.reset_c, reset_states[1]);
  }

 private:
  // Sets the resets of each direction. The second one, which runs backwards, replaces the states of a sequence before a
  // step if the sequence has the next step and that has a reset.
  void set_resets() {
    const Steps& steps = sizes.steps;
    const Tensor rows = without_padding(layer_.resets.unsqueeze(-1), 0).contiguous();
    begins_ = at::zeros({sizes.directions, steps.rows()}, rows.options());
    const bool* given = rows.const_data_ptr<bool>();
    bool* begins = begins_.mutable_data_ptr<bool>();
    std::copy_n(given, steps.rows(), begins);
    for (int64_t t = 0; sizes.directions == 2 && t + 1 < steps.time; ++t)
      std::copy_n(given + steps.first_row(t + 1), steps.batch_size(t + 1), begins + steps.rows() + steps.first_row(t));
    resets = {begins, steps.rows(), sizes.directions, steps.batch, layer_.every_step_has_reset_states()};
    for (const Tensor& state : layer_.reset_states)
      reset_states.push_back(state_for_kernel(state, reset_states.size()));
    if (reset_states.empty())
      for (const Tensor& state : states) reset_states.push_back(at::zeros_like(state));
  }

  // Computes the packed batch's steps, and the order of its sequences and rows, from the lengths.
  void pack() {
    Steps& steps = sizes.steps;
    const Tensor& lengths = layer_.lengths;
    const Tensor order = at::arange(steps.time * steps.batch, lengths.options()).view({steps.time, steps.batch});
    const auto [by_length, sequences] = lengths.sort(/*stable=*/true, /*dim=*/0, /*descending=*/true);
    const Tensor has_step = by_length.gt(at::arange(steps.time, lengths.options()).unsqueeze(1));  // [time, batch]
    sequences_ = sequences;
    rows_ = order.index_select(1, sequences).masked_select(has_step);
    batch_sizes_ = has_step.sum(1);
    first_rows_ = at::sub(at::cumsum(batch_sizes_, 0), batch_sizes_);
    steps.batch_sizes = batch_sizes_.const_data_ptr<int64_t>();
    steps.first_rows = first_rows_.const_data_ptr<int64_t>();
  }

  Tensor batch_sizes_, first_rows_;
  Tensor begins_;     // see Resets
  Tensor sequences_;  // [batch], the caller's index of each sequence of the packed batch; undefined without lengths
  Tensor rows_;       // [rows], the caller's index, in time * batch, of each packed row; undefined without lengths
};

// Returns a pointer to a tensor's values; null if it is undefined or empty.
template <typename T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() && tensor.numel() > 0 ? tensor.mutable_data_ptr<T>() : nullptr;
}
const void* pointer_to_any(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

StoredType stored_as(at::ScalarType type, at::ScalarType compute) {
  if (type == compute) return StoredType::kComputeType;
  return type == at::kBFloat16 ? StoredType::kBFloat16 : StoredType::kFloat16;
}

// Calls body.template operator()<Cell, T>() with a cell and the type of the computation.
template <typename Body>
void with_cell_and_type(cells::Kind kind, at::ScalarType compute, const Body& body) {
  with_cell(kind, [&]<typename Cell>() {
    compute == at::kDouble ? body.template operator()<Cell, double>() : body.template operator()<Cell, float>();
  });
}

// Calls body.template operator()<Cell, T, Stored>() with the layer's cell, the type of the computation and that of what
// params/layer.h calls Stored.
template <Pass kPass, typename Body>
void with_cell_and_types(const RecurrentLayer& layer, const CpuLayer& cpu_layer, const Body& body) {
  with_cell(layer.kind, [&]<typename Cell>() {
    if (cpu_layer.compute == at::kDouble)
      body.template operator()<Cell, double, double>();
    else if (cpu_layer.stored == at::kFloat)
      body.template operator()<Cell, float, float>();
    else if constexpr (kPass != Pass::kFrozen)
      body.template operator()<Cell, float, c10::BFloat16>();
  });
}

// Sets what a kernel needs to know of the weights.
template <typename T, typename Stored>
void set_weights(RecurrentForwardParams<T, Stored>& params, const CpuLayer& cpu_layer, at::ScalarType type) {
  for (int64_t d = 0; d < cpu_layer.sizes.directions; ++d) {
    const DirectionWeights& w = cpu_layer.weights[d];
    params.weights[d] = {pointer_to_any(w.weight_ih), pointer_to_any(w.weight_hh), pointer_to_any(w.weight_hr),
                         pointer<T>(w.bias_ih),       pointer<T>(w.bias_hh),       stored_as(type, cpu_layer.compute)};
  }
}

// Which results of the forward pass are wanted beside output and final states.
struct Save {
  bool gates, history;
};

// Computes a layer by `kernel`, which is called with the params. Results that are not wanted are undefined.
template <Pass kPass, typename Kernel>
RecurrentOutputs run_forward(const RecurrentLayer& layer, Save save, const Kernel& kernel) {
  const CpuLayer cpu_layer(layer, kPass);
  const RecurrentSizes& s = cpu_layer.sizes;
  RecurrentOutputs outputs;
  Tensor output = cpu_layer.empty(cpu_layer.output_shape(), cpu_layer.stored);
  Tensor h_n = cpu_layer.empty(layer.h0().sizes()), c_n, cells;
  if (save.gates) outputs.gates = cpu_layer.empty_gates();
  if (layer.cell.cell_states() > 0) {
    c_n = cpu_layer.writable(layer.c0(), layer.c0().sizes());
    if (save.history) cells = cpu_layer.empty({s.directions, s.steps.rows(), s.hidden_size});
  }
  if (s.steps.batch > 0)
    with_cell_and_types<kPass>(layer, cpu_layer, [&]<typename Cell, typename T, typename Stored>() {
      RecurrentForwardParams<T, Stored> params = {};
      params.sizes = s;
      set_weights(params, cpu_layer, layer.type);
      params.frozen = layer.frozen;
      params.input = cpu_layer.input.const_data_ptr<Stored>();
      params.h0 = cpu_layer.states[0].const_data_ptr<T>();
      cpu_layer.set_resets_of(params);
      params.output = output.mutable_data_ptr<Stored>();
      params.h_n = h_n.mutable_data_ptr<T>();
      params.c_n = pointer<T>(c_n);
      params.gates = pointer<Stored>(outputs.gates);
      params.cells = pointer<T>(cells);
      kernel.template operator()<Cell>(params);
    });
  outputs.output = cpu_layer.with_padding(cpu_layer.for_caller(output), 0);
  outputs.states.push_back(cpu_layer.unsorted(cpu_layer.for_caller(h_n)));
  if (layer.cell.cell_states() > 0) {
    outputs.states.push_back(cpu_layer.unsorted(cpu_layer.for_caller(c_n)));
    if (save.history) outputs.history.push_back(cpu_layer.with_padding(cells, 1));
  }
  return outputs;
}

}  // namespace

RecurrentOutputs forward_on_cpu(const RecurrentLayer& layer, bool save_for_backward) {
  RecurrentOutputs outputs = run_forward<Pass::kForward>(
      layer, {save_for_backward, save_for_backward},
      []<typename Cell>(const auto& params) { FUSED_RNN_CPU_CALL(recurrent_forward<Cell>, params); });
  if (save_for_backward) return outputs;
  const auto options = layer.input.options();
  outputs.gates = at::empty({0}, options.dtype(saved_on_cpu(layer.type)));
  if (layer.cell.cell_states() > 0) outputs.history.push_back(at::empty({0}, options.dtype(layer.accumulation_type())));
  return outputs;
}

Capability capability_of(FrozenForm form) { return form == FrozenForm::kInt8 ? capability_for_bytes() : capability(); }

RecurrentOutputs forward_frozen(const RecurrentLayer& layer, bool history) {
  return run_forward<Pass::kFrozen>(layer, {false, history}, [&]<typename Cell>(const auto& params) {
    FUSED_RNN_CPU_CALL_FOR(capability_of(layer.frozen.form), recurrent_frozen<Cell>, params);
  });
}

int64_t freeze_on_cpu(RecurrentLayer& layer) {
  const CpuLayer cpu_layer(layer, Pass::kFrozen);
  int64_t bytes = 0;
  with_cell_and_type(layer.kind, cpu_layer.compute, [&]<typename Cell, typename T>() {
    RecurrentForwardParams<T> params = {};
    params.sizes = layer.sizes;
    params.frozen = layer.frozen;
    set_weights(params, cpu_layer, layer.type);
    bytes = static_cast<int64_t>(sizeof(T)) *
            FUSED_RNN_CPU_CALL_FOR(capability_of(layer.frozen.form), recurrent_freeze<Cell>, params);
    layer.frozen.block_units = params.frozen.block_units;
  });
  return bytes;
}

RecurrentInputGradients backward_on_cpu(const RecurrentLayer& layer, const RecurrentGradients& gradients,
                                        const RecurrentSaved& saved, Wanted wanted) {
  const CpuLayer cpu_layer(layer, Pass::kBackward);
  const RecurrentSizes& s = cpu_layer.sizes;
  const bool has_cell_state = layer.cell.cell_states() > 0;
  const Tensor output = cpu_layer.rows_for_kernel(saved.output, 0, cpu_layer.stored),
               gates = cpu_layer.for_kernel(saved.gates, cpu_layer.stored),
               grad_output = cpu_layer.rows_for_kernel(gradients.output, 0, cpu_layer.stored);
  Tensor cells, grad_cells, grad_c0;
  if (has_cell_state) {
    cells = cpu_layer.rows_for_kernel(saved.history[0], 1, cpu_layer.compute);
    grad_cells = cpu_layer.rows_for_kernel(gradients.history[0], 1, cpu_layer.compute);
    grad_c0 = cpu_layer.writable(gradients.states[1], layer.c0().sizes());
  }
  Tensor grad_h0 = cpu_layer.writable(gradients.states[0], layer.h0().sizes());
  Tensor grad_input = cpu_layer.empty(wanted.input ? cpu_layer.input.sizes() : at::IntArrayRef{0}, cpu_layer.stored);
  const int64_t sum_size = cpu_layer.stored == cpu_layer.compute ? s.hidden_size : (s.hidden_size + 1) / 2 * 2;
  Tensor grad_gates = cpu_layer.empty({s.directions, s.steps.rows(), layer.cell.sums, sum_size}, cpu_layer.stored);
  std::vector<Tensor> grad_reset_states;
  for (size_t i = 0; wanted.states && i < layer.reset_states.size(); ++i)
    grad_reset_states.push_back(cpu_layer.empty(cpu_layer.reset_states[i].sizes()).zero_());
  RecurrentInputGradients result;
  for (int64_t d = 0; wanted.weights && d < s.directions; ++d) {
    result.weights[d] = cpu_layer.weights[d];
    // A gradient has the type in which the kernels read the weight.
    result.weights[d].for_each(
        [&](Tensor& gradient) { gradient = cpu_layer.empty(gradient.sizes(), gradient.scalar_type()); });
  }
  with_cell_and_types<Pass::kBackward>(layer, cpu_layer, [&]<typename Cell, typename T, typename Stored>() {
    RecurrentBackwardParams<T, Stored> params = {};
    params.sizes = s;
    for (int64_t d = 0; d < s.directions; ++d) {
      const DirectionWeights &w = cpu_layer.weights[d], &g = result.weights[d];
      params.weights[d] = {w.weight_ih.const_data_ptr<Stored>(), w.weight_hh.const_data_ptr<Stored>(),
                           pointer<T>(w.weight_hr)};
      params.grad_weights[d] = {pointer<Stored>(g.weight_ih), pointer<Stored>(g.weight_hh), pointer<T>(g.bias_ih),
                                pointer<T>(g.bias_hh), pointer<T>(g.weight_hr)};
    }
    params.input = cpu_layer.input.const_data_ptr<Stored>();
    params.h0 = cpu_layer.states[0].const_data_ptr<Stored>();
    params.c0 = has_cell_state ? cpu_layer.states[1].const_data_ptr<T>() : nullptr;
    cpu_layer.set_resets_of(params);
    params.grad_reset_h = grad_reset_states.empty() ? nullptr : pointer<T>(grad_reset_states[0]);
    params.grad_reset_c = grad_reset_states.size() < 2 ? nullptr : pointer<T>(grad_reset_states[1]);
    params.output = pointer<Stored>(output);
    params.gates = gates.const_data_ptr<Stored>();
    params.cells = pointer<T>(cells);
    params.grad_output = pointer<Stored>(grad_output);
    params.grad_cells = pointer<T>(grad_cells);
    params.grad_h = grad_h0.mutable_data_ptr<T>();
    params.grad_c = pointer<T>(grad_c0);
    params.grad_gates = grad_gates.mutable_data_ptr<Stored>();
    params.grad_input = pointer<Stored>(grad_input);
    params.weight_grad = wanted.weights;
    FUSED_RNN_CPU_CALL(recurrent_backward<Cell>, params);
  });
  // The kernels compute the gradient of bias_ih beside the product for weight_ih, which has no columns if the inputs
  // are of size 0.
  for (int64_t d = 0; s.input_size == 0 && d < s.directions; ++d)
    if (result.weights[d].bias_ih.defined())
      result.weights[d]
          .bias_ih.view({layer.cell.gates, s.hidden_size})
          .copy_(grad_gates[d]
                     .narrow(1, 0, layer.cell.gates)
                     .narrow(2, 0, s.hidden_size)
                     .sum(0, false, cpu_layer.compute));
  const auto of_state = [&](const Tensor& gradient) {
    return cpu_layer.for_caller(wanted.states ? cpu_layer.unsorted(gradient) : cpu_layer.empty({0}));
  };
  result.input = cpu_layer.for_caller(wanted.input ? cpu_layer.with_padding(grad_input, 0) : grad_input);
  result.states.push_back(of_state(grad_h0));
  if (has_cell_state) result.states.push_back(of_state(grad_c0));
  for (size_t i = 0; i < layer.reset_states.size(); ++i)
    result.reset_states.push_back(of_state(wanted.states ? grad_reset_states[i] : Tensor()));
  for (DirectionWeights& weights : result.weights)
    weights.for_each([&](Tensor& gradient) { gradient = cpu_layer.for_caller(gradient); });
  return result;
}

}  // namespace fused_rnn::ops
