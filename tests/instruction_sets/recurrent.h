// Random recurrent layers of every cell, forward and backward.

#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "arrays.h"
#include "cells/cells.h"
#include "params/layer.h"

using namespace fused_rnn;

// The random choices for a layer, apart from its arrays.
struct RecurrentProblem {
  cells::Kind kind;
  cells::Description cell;
  bool biased, packed, trains, output_gradient, input_gradient, weight_gradient;
  StoredType stored;
  bool frozen;      // whether the weights are packed once, and then used; only without training
  FrozenForm form;  // of a frozen layer
  RecurrentSizes sizes;
  int64_t projection;  // the size of the projection, or 0 for none
  std::vector<int64_t> batch_sizes, first_rows;

  RecurrentProblem(Random& random, bool wide) {
    kind = static_cast<cells::Kind>(random.between(0, std::size(cells::kDescriptions) - 1));
    cell = describe(kind);
    biased = random.once_in(2), packed = random.once_in(3), trains = random.once_in(2);
    output_gradient = !random.once_in(4), input_gradient = !random.once_in(4), weight_gradient = !random.once_in(4);
    stored =
        wide ? StoredType::kComputeType
             : std::vector{StoredType::kComputeType, StoredType::kBFloat16, StoredType::kFloat16}[random.between(0, 2)];
    frozen = !trains && !random.once_in(3);
    // Weights that are exact in bfloat16 may be packed as such and remain the same.
    form = stored == StoredType::kBFloat16 && random.once_in(2) ? FrozenForm::kBFloat16
           : !wide && random.once_in(3)                         ? FrozenForm::kInt8
                                                                : FrozenForm::kValues;
    // Without gates, and with weights as large as these, a difference of rounding grows from step to step.
    // It grows faster if gradients are rounded, too.
    const bool rounds_gradients = trains && stored == StoredType::kBFloat16;
    const int64_t most = cell.gates == 1 ? 3 : rounds_gradients ? 5 : 9;
    const int64_t time = random.once_in(3) ? 1 : random.between(1, most);
    const int64_t batch = random.once_in(3) ? random.between(1, 4) : random.between(1, 60);
    const int64_t hidden = random.once_in(2) ? random.between(1, 90) : 16 * random.between(1, 8);
    projection = cell.may_project() && random.once_in(4) ? random.between(1, hidden) : 0;
    int64_t rows = 0, left = batch;
    for (int64_t t = 0; t < time; ++t) {
      if (packed && t > 0) left = random.between(1, left);
      batch_sizes.push_back(left);
      first_rows.push_back(rows);
      rows += left;
    }
    sizes = {{time, batch, packed ? batch_sizes.data() : nullptr, packed ? first_rows.data() : nullptr},
             random.between(1, 70),
             hidden,
             projection ? projection : hidden,
             random.between(1, 2),
             random.between(1, 2)};
  }
  RecurrentProblem(const RecurrentProblem&) = delete;

  bool has_cell_state() const { return cell.cell_states() > 0; }
  std::string text() const {
    char line[256];
    std::snprintf(
        line, sizeof line,
        "%s time %ld batch %ld input %ld hidden %ld projection %ld directions %ld threads %ld%s%s%s stored %d%s %d",
        cell.name, sizes.steps.time, sizes.steps.batch, sizes.input_size, sizes.hidden_size, projection,
        sizes.directions, sizes.threads, biased ? " biased" : "", packed ? " packed" : "", trains ? " trains" : "",
        static_cast<int>(stored), frozen ? " frozen" : "", static_cast<int>(form));
    return line;
  }
};

// The params of both passes, with the arrays that they point to.
template <typename T>
struct RecurrentCall {
  Arrays<T> arrays;
  RecurrentForwardParams<T> forward = {};
  RecurrentBackwardParams<T> backward = {};

  RecurrentCall(const RecurrentProblem& p, Random& random) : arrays(random, p.stored == StoredType::kBFloat16) {
    const RecurrentSizes& s = forward.sizes = backward.sizes = p.sizes;
    const int64_t rows = s.steps.rows(), d = s.directions, states = d * s.steps.batch, hidden = s.hidden_size;
    for (int64_t direction = 0; direction < d; ++direction) weights(p, direction);
    backward.input = forward.input = arrays.input(rows * s.input_size);
    backward.h0 = forward.h0 = arrays.input(states * s.output_size);
    backward.output = forward.output = arrays.output("output", rows * d * s.output_size);
    forward.h_n = arrays.output("h_n", states * s.output_size);
    if (p.has_cell_state()) forward.c_n = arrays.output("c_n", states * hidden);
    if (!p.trains) return;
    backward.gates = forward.gates = arrays.output("gates", d * rows * p.cell.sums * hidden);
    if (p.has_cell_state()) {
      backward.cells = forward.cells = arrays.output("cells", d * rows * hidden);
      backward.c0 = arrays.input(states * hidden);
      backward.grad_c = arrays.output("grad_c0", states * hidden);
    }
    if (p.output_gradient) backward.grad_output = arrays.input(rows * d * s.output_size);
    backward.grad_h = arrays.output("grad_h0", states * s.output_size);
    backward.grad_gates = arrays.output("grad_gates", d * rows * p.cell.sums * hidden);
    if (p.input_gradient) backward.grad_input = arrays.output("grad_input", rows * s.input_size);
    backward.weight_grad = p.weight_gradient;
  }

  // Returns memory for packed weights, aligned as that of tensors is.
  void* packed(int64_t values) {
    packed_.resize(static_cast<size_t>(values) + 64 / sizeof(T));
    const auto address = reinterpret_cast<uintptr_t>(packed_.data());
    return reinterpret_cast<void*>((address + 63) / 64 * 64);
  }
  // Removes the weights, which a frozen layer must not read.
  void forget_weights() { forward.weights[0] = forward.weights[1] = {}; }

 private:
  std::vector<T> packed_;

  void weights(const RecurrentProblem& p, int64_t direction) {
    const RecurrentSizes& s = p.sizes;
    const int64_t sums = p.cell.gates * s.hidden_size, ih = sums * s.input_size, hh = sums * s.output_size;
    const int64_t hr = p.projection * s.hidden_size;
    const auto bias = [&] { return p.biased ? arrays.input(sums) : nullptr; };
    const auto& w = backward.weights[direction] = {arrays.input(ih), arrays.input(hh), hr ? arrays.input(hr) : nullptr};
    const auto stored = [&](const T* computed, int64_t count) -> const void* {
      if (p.stored == StoredType::kComputeType || !computed) return computed;
      return arrays.halves(p.stored == StoredType::kBFloat16, count);
    };
    forward.weights[direction] = {stored(w.ih, ih), stored(w.hh, hh), stored(w.hr, hr), bias(), bias(), p.stored};
    if (!p.trains || !p.weight_gradient) return;
    const auto bias_gradient = [&](const char* name) { return p.biased ? arrays.output(name, sums) : nullptr; };
    backward.grad_weights[direction] = {arrays.output("grad_weight_ih", ih), arrays.output("grad_weight_hh", hh),
                                        bias_gradient("grad_bias_ih"), bias_gradient("grad_bias_hh"),
                                        hr ? arrays.output("grad_weight_hr", hr) : nullptr};
  }
};

// A call in pairs of bfloat16: arrays of that type take the place of those that params/layer.h calls Stored.
class PairedCall {
 public:
  PairedCall(const RecurrentProblem& p, RecurrentCall<float>& call)
      : p_(p),
        s_(p.sizes),
        forward_(call.forward),
        backward_(call.backward),
        input_(rounded(forward_.input, s_.steps.rows() * s_.input_size)) {}

  // Runs the forward pass, and copies what it writes in bfloat16 to the arrays of the call.
  template <typename Cell, typename Forward>
  void run_forward(const Forward& run) {
    const auto& f = forward_;
    output_.resize(outputs());
    gates_.resize(f.gates ? sums() * s_.hidden_size : 0);
    run(RecurrentForwardParams<float, c10::BFloat16>{s_,
                                                     {f.weights[0], f.weights[1]},
                                                     f.frozen,
                                                     input_,
                                                     f.h0,
                                                     f.resets,
                                                     nullptr,
                                                     nullptr,
                                                     output_.data(),
                                                     f.h_n,
                                                     f.c_n,
                                                     f.gates ? gates_.data() : nullptr,
                                                     f.cells});
    std::copy(output_.begin(), output_.end(), f.output);
    for (size_t i = 0; i < gates_.size(); ++i) {
      const int sum = static_cast<int>(static_cast<int64_t>(i) / s_.hidden_size % Cell::kSums);
      f.gates[i] = Cell::bounded(sum) ? decoded(gates_[i]) : float(gates_[i]);
    }
  }

  // Runs the backward pass, and copies what it writes in bfloat16 to the arrays of the call.
  template <typename Backward>
  void run_backward(const Backward& run) {
    const auto& b = backward_;
    const int64_t padded = (s_.hidden_size + 1) / 2 * 2;
    std::vector<c10::BFloat16> grad_gates(sums() * padded);
    run(RecurrentBackwardParams<float, c10::BFloat16>{s_,
                                                      {weights(0), weights(1)},
                                                      input_,
                                                      rounded(b.h0, s_.directions * s_.steps.batch * s_.output_size),
                                                      b.c0,
                                                      b.resets,
                                                      nullptr,
                                                      nullptr,
                                                      output_.data(),
                                                      gates_.data(),
                                                      b.cells,
                                                      rounded(b.grad_output, outputs()),
                                                      b.grad_cells,
                                                      b.grad_h,
                                                      b.grad_c,
                                                      nullptr,
                                                      nullptr,
                                                      grad_gates.data(),
                                                      result(b.grad_input, s_.steps.rows() * s_.input_size),
                                                      b.weight_grad,
                                                      {weight_gradients(0), weight_gradients(1)}});
    for (int64_t i = 0; i < sums(); ++i)
      std::copy_n(grad_gates.data() + i * padded, s_.hidden_size, b.grad_gates + i * s_.hidden_size);
    for (const auto& [values, target] : results_) std::copy(values->begin(), values->end(), target);
  }

 private:
  using Values = std::vector<c10::BFloat16>;

  // The number of sums and of outputs of all rows, and the rows of weight matrices.
  int64_t sums() const { return s_.directions * s_.steps.rows() * p_.cell.sums; }
  int64_t outputs() const { return s_.steps.rows() * s_.directions * s_.output_size; }
  int64_t units() const { return p_.cell.gates * s_.hidden_size; }

  // The number between -1 and 1 that stands in the gates as `stored`; see cpu/recurrent/saved_values.h.
  static float decoded(float stored) {
    const double size = std::fabs(double(stored));
    return static_cast<float>(size > 1 ? std::copysign(1 - std::ldexp(size, -100), double(stored)) : double(stored));
  }

  const c10::BFloat16* rounded(const float* values, int64_t count) {
    if (!values) return nullptr;
    arrays_.push_back(std::make_unique<Values>(values, values + count));
    return arrays_.back()->data();
  }
  // Returns memory for a result, which is copied to `target` after the call.
  c10::BFloat16* result(float* target, int64_t count) {
    if (!target) return nullptr;
    arrays_.push_back(std::make_unique<Values>(static_cast<size_t>(count)));
    results_.emplace_back(arrays_.back().get(), target);
    return arrays_.back()->data();
  }
  RecurrentWeights<float, c10::BFloat16> weights(int64_t direction) {
    const auto& w = backward_.weights[direction];
    return {rounded(w.ih, units() * s_.input_size), rounded(w.hh, units() * s_.output_size), w.hr};
  }
  RecurrentWeightGradients<float, c10::BFloat16> weight_gradients(int64_t direction) {
    const auto& g = backward_.grad_weights[direction];
    return {result(g.ih, units() * s_.input_size), result(g.hh, units() * s_.output_size), g.bias_ih, g.bias_hh, g.hr};
  }

  const RecurrentProblem& p_;
  const RecurrentSizes& s_;
  const RecurrentForwardParams<float>& forward_;
  const RecurrentBackwardParams<float>& backward_;
  std::vector<std::unique_ptr<Values>> arrays_;
  std::vector<std::pair<const Values*, float*>> results_;
  Values output_, gates_;
  const c10::BFloat16* const input_;
};
