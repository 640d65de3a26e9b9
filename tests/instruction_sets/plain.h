// The kernels in plain loops of float64: the definition with which those of an instruction set are compared. It shares
// nothing with them but the arguments of params/ and the names of the cells.

#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cells/cells.h"
#include "params/layer.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cpu::PLAIN {

using Values = std::vector<double>;

template <typename Cell>
inline constexpr bool kIsPlainRNN = std::is_same_v<Cell, cells::RNNTanh> || std::is_same_v<Cell, cells::RNNReLU>;

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A weight matrix of any stored type.
template <typename T>
struct Weight {
  const void* data;
  StoredType stored;
  double operator[](int64_t i) const {
    if (stored == StoredType::kComputeType) return static_cast<const T*>(data)[i];
    const uint16_t bits = static_cast<const uint16_t*>(data)[i];
    if (stored == StoredType::kBFloat16) {
      const uint32_t wide = uint32_t(bits) << 16;
      float value;
      std::memcpy(&value, &wide, sizeof value);
      return value;
    }
    const double magnitude = std::ldexp(1024 + bits % 1024, (bits >> 10) % 32 - 25);  // of a normal float16
    return bits >> 15 ? -magnitude : magnitude;
  }
};

// The step before one of a direction, for sequence `b`: its row in arrays of all steps, or -1 for none.
inline int64_t row_before(const Steps& steps, int64_t direction, int64_t t, int64_t b) {
  const int64_t before = direction == 0 ? t - 1 : t + 1;
  const bool exists = before >= 0 && before < steps.time && b < steps.batch_size(before);
  return exists ? steps.first_row(before) + b : -1;
}

// sums[g * hidden + u] += matrix times values, for all gates g and units u.
template <typename Matrix, typename Vector>
void multiply(const Matrix& matrix, const Vector& values, int64_t size, Values& sums) {
  for (size_t i = 0; i < sums.size(); ++i)
    for (int64_t k = 0; k < size; ++k) sums[i] += matrix[int64_t(i) * size + k] * values[k];
}

template <typename Cell, typename T>
void recurrent_forward(const RecurrentForwardParams<T>& p) {
  const RecurrentSizes& s = p.sizes;
  const int64_t hidden = s.hidden_size, size = s.output_size, batch = s.steps.batch, rows = s.steps.rows();
  constexpr int kGates = Cell::kGates;
  for (int64_t d = 0; d < s.directions; ++d) {
    const StoredWeights<T>& w = p.weights[d];
    Values h(p.h0 + d * batch * size, p.h0 + (d + 1) * batch * size), c(batch * hidden);
    if (p.c_n) c.assign(p.c_n + d * batch * hidden, p.c_n + (d + 1) * batch * hidden);
    for (int64_t index = 0; index < s.steps.time; ++index) {
      const int64_t t = d == 0 ? index : s.steps.time - 1 - index;
      for (int64_t b = 0; b < s.steps.batch_size(t); ++b) {
        const int64_t row = s.steps.first_row(t) + b;
        Values a(kGates * hidden), r(kGates * hidden), unprojected(hidden);  // the input's and the recurrent part
        if (w.bias_ih) a.assign(w.bias_ih, w.bias_ih + kGates * hidden);
        if (w.bias_hh) r.assign(w.bias_hh, w.bias_hh + kGates * hidden);
        multiply(Weight<T>{w.ih, w.stored}, p.input + row * s.input_size, s.input_size, a);
        multiply(Weight<T>{w.hh, w.stored}, h.data() + b * size, size, r);
        for (int64_t u = 0; u < hidden; ++u) {
          const auto gate = [&](int g) { return a[g * hidden + u] + r[g * hidden + u]; };
          Values saved;
          if constexpr (std::is_same_v<Cell, cells::LSTM>) {
            saved = {sigmoid(gate(0)), sigmoid(gate(1)), std::tanh(gate(2)), sigmoid(gate(3))};
            double& cell = c[b * hidden + u];
            cell = saved[1] * cell + saved[0] * saved[2];
            unprojected[u] = saved[3] * std::tanh(cell);
            if (p.cells) p.cells[(d * rows + row) * hidden + u] = T(cell);
          } else if constexpr (std::is_same_v<Cell, cells::GRU>) {
            const double reset = sigmoid(gate(0)), update = sigmoid(gate(1)), recurrent = r[2 * hidden + u];
            const double candidate = std::tanh(a[2 * hidden + u] + reset * recurrent);
            saved = {reset, update, candidate, recurrent};
            unprojected[u] = (1 - update) * candidate + update * h[b * size + u];
          } else {
            static_assert(kIsPlainRNN<Cell>, "the step of a new cell is missing here");
            const double sum = gate(0);
            saved = {std::is_same_v<Cell, cells::RNNTanh> ? std::tanh(sum) : std::fmax(sum, 0.0)};
            unprojected[u] = saved[0];
          }
          for (size_t i = 0; p.gates && i < saved.size(); ++i)
            p.gates[((d * rows + row) * int64_t(saved.size()) + int64_t(i)) * hidden + u] = T(saved[i]);
        }
        Values next(size);
        if (w.hr)
          multiply(Weight<T>{w.hr, w.stored}, unprojected, hidden, next);
        else
          next = unprojected;
        for (int64_t j = 0; j < size; ++j) p.output[(row * s.directions + d) * size + j] = T(h[b * size + j] = next[j]);
      }
    }
    for (int64_t i = 0; i < batch * size; ++i) p.h_n[d * batch * size + i] = T(h[i]);
    for (int64_t i = 0; p.c_n && i < batch * hidden; ++i) p.c_n[d * batch * hidden + i] = T(c[i]);
  }
}

// The memory of a frozen layer holds pointers to its weights.
template <typename Cell, typename T>
int64_t recurrent_freeze(RecurrentForwardParams<T>& p) {
  if (p.frozen.data) std::memcpy(p.frozen.data, p.weights, sizeof p.weights);
  return int64_t(sizeof p.weights / sizeof(T));
}

template <typename Cell, typename T>
void recurrent_frozen(const RecurrentForwardParams<T>& p) {
  RecurrentForwardParams<T> ordinary = p;
  std::memcpy(ordinary.weights, p.frozen.data, sizeof ordinary.weights);
  recurrent_forward<Cell>(ordinary);
}

// Adds the products of two vectors to a matrix, [left, right].
template <typename Vector>
void add_products(const Values& left, const Vector& right, int64_t count, Values& matrix) {
  for (size_t i = 0; i < left.size(); ++i)
    for (int64_t k = 0; k < count; ++k) matrix[int64_t(i) * count + k] += left[i] * right[k];
}

template <typename T>
void store(const Values& values, T* target) {
  for (size_t i = 0; target && i < values.size(); ++i) target[i] = T(values[i]);
}

template <typename Cell, typename T>
void recurrent_backward(const RecurrentBackwardParams<T>& p) {
  const RecurrentSizes& s = p.sizes;
  const int64_t hidden = s.hidden_size, size = s.output_size, inputs = s.input_size, batch = s.steps.batch;
  const int64_t rows = s.steps.rows();
  constexpr int64_t kGates = Cell::kGates, kSums = Cell::kSums;
  Values grad_input(rows * inputs);
  for (int64_t d = 0; d < s.directions; ++d) {
    const auto& w = p.weights[d];
    Values grad_h(p.grad_h + d * batch * size, p.grad_h + (d + 1) * batch * size), grad_c(batch * hidden);
    if (p.grad_c) grad_c.assign(p.grad_c + d * batch * hidden, p.grad_c + (d + 1) * batch * hidden);
    Values ih(kGates * hidden * inputs), hh(kGates * hidden * size), hr(w.hr ? size * hidden : 0);
    Values bias_ih(kGates * hidden), bias_hh(kGates * hidden);
    for (int64_t index = s.steps.time - 1; index >= 0; --index) {
      const int64_t t = d == 0 ? index : s.steps.time - 1 - index;
      for (int64_t b = 0; b < s.steps.batch_size(t); ++b) {
        const int64_t row = s.steps.first_row(t) + b, before = row_before(s.steps, d, t, b);
        const T* h = before < 0 ? p.h0 + (d * batch + b) * size : p.output + (before * s.directions + d) * size;
        const T* gates = p.gates + (d * rows + row) * kSums * hidden;
        Values grad(grad_h.begin() + b * size, grad_h.begin() + (b + 1) * size);
        for (int64_t j = 0; p.grad_output && j < size; ++j)
          grad[j] += p.grad_output[(row * s.directions + d) * size + j];
        Values unprojected(hidden), grad_hidden(w.hr ? hidden : 0);
        if (w.hr) {
          const T* c = p.cells + (d * rows + row) * hidden;
          for (int64_t u = 0; u < hidden; ++u) {
            unprojected[u] = gates[3 * hidden + u] * std::tanh(double(c[u]));
            for (int64_t j = 0; j < size; ++j) grad_hidden[u] += w.hr[j * hidden + u] * grad[j];
          }
          add_products(grad, unprojected, hidden, hr);
        } else {
          grad_hidden = grad;
        }
        Values a(kGates * hidden), r(kGates * hidden), direct(size);  // the gradients of both parts of the sums
        for (int64_t u = 0; u < hidden; ++u) {
          const auto value = [&](int i) { return double(gates[i * hidden + u]); };
          const double dh = grad_hidden[u];
          if constexpr (std::is_same_v<Cell, cells::LSTM>) {
            const double i = value(0), f = value(1), g = value(2), o = value(3);
            const int64_t at = (d * rows + row) * hidden + u;
            const double tanh_c = std::tanh(double(p.cells[at]));
            const double c =
                before < 0 ? p.c0[(d * batch + b) * hidden + u] : p.cells[(d * rows + before) * hidden + u];
            double& dc = grad_c[b * hidden + u];
            dc += dh * o * (1 - tanh_c * tanh_c) + (p.grad_cells ? p.grad_cells[at] : T(0));
            a[u] = dc * g * i * (1 - i);
            a[hidden + u] = dc * c * f * (1 - f);
            a[2 * hidden + u] = dc * i * (1 - g * g);
            a[3 * hidden + u] = dh * tanh_c * o * (1 - o);
            dc *= f;
          } else if constexpr (std::is_same_v<Cell, cells::GRU>) {
            const double reset = value(0), update = value(1), candidate = value(2), recurrent = value(3);
            const double inner = dh * (1 - update) * (1 - candidate * candidate);
            a[u] = inner * recurrent * reset * (1 - reset);
            a[hidden + u] = dh * (h[u] - candidate) * update * (1 - update);
            a[2 * hidden + u] = inner;
            direct[u] = dh * update;
          } else {
            static_assert(kIsPlainRNN<Cell>, "the backward step of a new cell is missing here");
            const double y = value(0);
            a[u] = std::is_same_v<Cell, cells::RNNTanh> ? dh * (1 - y * y) : (y > 0 ? dh : 0);
          }
        }
        r = a;
        if constexpr (std::is_same_v<Cell, cells::GRU>)
          for (int64_t u = 0; u < hidden; ++u) r[2 * hidden + u] *= double(gates[u]);
        Values sums = a;
        if (kSums > kGates) sums.insert(sums.end(), r.end() - hidden, r.end());
        store(sums, p.grad_gates + (d * rows + row) * kSums * hidden);
        for (int64_t i = 0; i < kGates * hidden; ++i) {
          for (int64_t k = 0; k < inputs; ++k) grad_input[row * inputs + k] += a[i] * w.ih[i * inputs + k];
          for (int64_t j = 0; j < size; ++j) direct[j] += r[i] * w.hh[i * size + j];
          bias_ih[i] += a[i];
          bias_hh[i] += r[i];
        }
        add_products(a, p.input + row * inputs, inputs, ih);
        add_products(r, h, size, hh);
        std::copy(direct.begin(), direct.end(), grad_h.begin() + b * size);
      }
    }
    store(grad_h, p.grad_h + d * batch * size);
    if (p.grad_c) store(grad_c, p.grad_c + d * batch * hidden);
    if (!p.weight_grad) continue;
    const RecurrentWeightGradients<T, T>& g = p.grad_weights[d];
    store(ih, g.ih), store(hh, g.hh), store(bias_ih, g.bias_ih), store(bias_hh, g.bias_hh), store(hr, g.hr);
  }
  store(grad_input, p.grad_input);
}

// Calls body(image, out channel, pixel, in channel, tap, pixel that the tap reads) for every product of a masked
// convolution; pixels are counted in raster order.
template <typename Body>
void for_each_product(const MaskedConv2dSizes& s, const Body& body) {
  for (int64_t tap = 0; tap < s.taps(); ++tap)
    for (int64_t out = 0; out < s.out_channels; ++out)
      for (int64_t in = 0; in < s.in_channels; ++in) {
        const int64_t out_group = out * s.data_channels / s.out_channels;
        const int64_t in_group = in * s.data_channels / s.in_channels;
        const bool sees = in_group < out_group || (s.own_group && in_group == out_group);
        const bool is_active = tap < s.dense_taps || (s.data_channels > 1 && tap == s.centre() && sees);
        if (!is_active) continue;
        const int64_t down = (tap / s.kernel_width - s.kernel_height / 2) * s.dilation_height;
        const int64_t right = (tap % s.kernel_width - s.kernel_width / 2) * s.dilation_width;
        for (int64_t image = 0; image < s.batch; ++image)
          for (int64_t y = 0; y < s.height; ++y)
            for (int64_t x = 0; x < s.width; ++x) {
              const int64_t row = y + down, column = x + right;
              if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
              body(image, out, y * s.width + x, in, tap, row * s.width + column);
            }
      }
}

// Returns where a value of an image is.
template <typename T>
int64_t at(const MaskedConv2dSizes& s, const Images<T>& images, int64_t channels, int64_t image, int64_t channel,
           int64_t pixel) {
  const int64_t pixels = s.height * s.width;
  return images.channels_last ? (image * pixels + pixel) * channels + channel
                              : (image * channels + channel) * pixels + pixel;
}

template <typename T>
void masked_conv2d(const MaskedConv2dForwardParams<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  const int64_t pixels = s.height * s.width, channels = p.output_channels(), half = channels / s.data_channels;
  const auto sum_at = [&](int64_t image, int64_t out, int64_t pixel) {
    return at(s, p.output, s.out_channels, image, out, pixel);
  };
  Values sums(s.batch * s.out_channels * pixels), output(s.batch * channels * pixels);
  for (int64_t i = 0; i < s.batch * s.out_channels * pixels; ++i) {
    const int64_t image = i / (s.out_channels * pixels), out = i / pixels % s.out_channels;
    sums[sum_at(image, out, i % pixels)] = p.bias ? p.bias[out] : 0;
  }
  for_each_product(s, [&](int64_t image, int64_t out, int64_t pixel, int64_t in, int64_t tap, int64_t source) {
    sums[sum_at(image, out, pixel)] += double(p.weight.at(out, in)[tap * p.weight.tap_stride]) *
                                       p.input.data[at(s, p.input, s.in_channels, image, in, source)];
  });
  for (int64_t i = 0; i < s.batch * channels * pixels; ++i) {
    const int64_t image = i / (channels * pixels), out = i / pixels % channels, pixel = i % pixels;
    const int64_t to = at(s, p.output, channels, image, out, pixel);
    if (p.activation == MaskedConv2dActivation::kGated) {
      const int64_t a = 2 * half * (out / half) + out % half;
      output[to] = std::tanh(sums[sum_at(image, a, pixel)]) / (1 + std::exp(-sums[sum_at(image, a + half, pixel)]));
    } else {
      const double sum = sums[sum_at(image, out, pixel)];
      output[to] = p.activation == MaskedConv2dActivation::kReLU && sum < 0 ? 0 : sum;
    }
    if (p.residual) output[to] += p.residual[to];
  }
  store(output, p.output.data);
  store(sums, p.sums.data);
}

template <typename T>
void masked_conv2d_input_gradient(const MaskedConv2dInputGradientParams<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  Values grad(s.batch * s.in_channels * s.height * s.width);
  for_each_product(s, [&](int64_t image, int64_t out, int64_t pixel, int64_t in, int64_t tap, int64_t source) {
    grad[at(s, p.grad_input, s.in_channels, image, in, source)] +=
        double(p.weight.at(out, in)[tap * p.weight.tap_stride]) *
        p.grad_output.data[at(s, p.grad_output, s.out_channels, image, out, pixel)];
  });
  store(grad, p.grad_input.data);
}

template <typename T>
void masked_conv2d_parameter_gradients(const MaskedConv2dParameterGradientsParams<T>& p) {
  const MaskedConv2dSizes& s = p.sizes;
  Values weight(s.out_channels * s.in_channels * s.taps()), bias(s.out_channels);
  for_each_product(s, [&](int64_t image, int64_t out, int64_t pixel, int64_t in, int64_t tap, int64_t source) {
    weight[out * p.grad_weight.out_stride + in * p.grad_weight.in_stride + tap * p.grad_weight.tap_stride] +=
        double(p.grad_output.data[at(s, p.grad_output, s.out_channels, image, out, pixel)]) *
        p.input.data[at(s, p.input, s.in_channels, image, in, source)];
  });
  for (int64_t i = 0; i < s.batch * s.out_channels * s.height * s.width; ++i) {
    const int64_t out = i / (s.height * s.width) % s.out_channels, image = i / (s.height * s.width) / s.out_channels;
    bias[out] += p.grad_output.data[at(s, p.grad_output, s.out_channels, image, out, i % (s.height * s.width))];
  }
  store(weight, p.grad_weight.data);
  store(bias, p.grad_bias);
}

}  // namespace fused_rnn::cpu::PLAIN
