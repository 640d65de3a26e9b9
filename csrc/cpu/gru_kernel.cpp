// The GRU on a processor: what its steps add to the loops over a recurrent layer.

#include "cells/gru.h"
#include "cpu/activation.h"
#include "cpu/gru.h"
#include "cpu/recurrent_backward.h"
#include "cpu/recurrent_forward.h"

namespace fused_rnn::cpu {
namespace {

struct GRUCell {
  static constexpr int kGates = 3;
  // The gates' sums that the hidden values go into, and whether a gradient passes from one hidden value to the
  // previous.
  static constexpr Part kHiddenParts[] = {{0, 2}, {3, 1}};
  static constexpr bool kCarriesHidden = true;

  // The biases of the units of a block: of r, of z, of the input's and of the recurrent part of n.
  template <typename T>
  static void pack_bias(const RecurrentWeights<T>& weights, int64_t hidden, int64_t unit, int64_t units, T* packed) {
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      const bool used = weights.bias_ih && lane < units;
      const auto at = [&](const T* bias, int64_t gate) { return used ? bias[gate * hidden + unit + lane] : T(0); };
      packed[lane] = at(weights.bias_ih, 0) + at(weights.bias_hh, 0);
      packed[kLanes<T> + lane] = at(weights.bias_ih, 1) + at(weights.bias_hh, 1);
      packed[2 * kLanes<T> + lane] = at(weights.bias_ih, 2);
      packed[3 * kLanes<T> + lane] = at(weights.bias_hh, 2);
    }
  }

  template <typename T, int kRows>
  static FUSED_RNN_INLINE void multiply_input(Tile<T, kRows>& tile, const T* a, int64_t row, const T* w,
                                              int64_t depth) {
    tile.template multiply<0, 1, 2>(a, row, 1, w, kGates * kLanes<T>, depth);
  }
  template <typename T, int kRows>
  static FUSED_RNN_INLINE void multiply_hidden(Tile<T, kRows>& tile, const T* a, int64_t row, const T* w,
                                               int64_t depth) {
    tile.template multiply<0, 1, 3>(a, row, 1, w, kGates * kLanes<T>, depth);
  }

  template <int kRows, typename T>
  static void dot_input(const T* a, int64_t row, const T* w, int64_t hidden, int64_t depth, int64_t units, T* sums) {
    dot_gates<kRows, 0, 1, 2>(a, row, w, hidden, depth, units, sums);
  }
  template <int kRows, typename T>
  static void dot_hidden(const T* a, int64_t row, const T* w, int64_t hidden, int64_t depth, int64_t units, T* sums) {
    dot_gates<kRows, 0, 1, 3>(a, row, w, hidden, depth, units, sums);
  }

  // Turns a tile of sums into states.
  template <typename T, int kRows>
  static FUSED_RNN_INLINE void finish(Tile<T, kRows>& tile, int64_t unit, const CellPlace<T>& place) {
    unroll<kRows>([&](auto row) FUSED_RNN_INLINE {
      auto& sum = tile.sum[row];
      cells::GRUGates<Vec<T>> gates = {sum[0], sum[1], sum[2], sum[3]};
      const Vec<T> previous = load(place.previous + row * place.previous_row + unit, place.units);
      const Vec<T> hidden = cells::gru_forward<Activation>(gates, previous);
      store(place.hidden + row * place.hidden_row, hidden, place.units);
      if (place.gates) {
        const Vec<T> kept[] = {gates.r, gates.z, gates.n, gates.hn};
        unroll<4>([&](auto gate) FUSED_RNN_INLINE {
          store(place.gates + (row * 4 + gate) * place.hidden_size, kept[gate], place.units);
        });
      }
    });
  }

  // tile += gradients of the sums, transposed weights.
  template <typename AnyTile, typename T>
  static FUSED_RNN_INLINE void multiply_back(AnyTile& tile, const T* a, int64_t row, const T* w, int64_t stride,
                                             int64_t hidden) {
    tile.template multiply<0, 1>(a, row, 1, w, stride, 2 * hidden);
    tile.template multiply<0, 1>(a + 3 * hidden, row, 1, w + 2 * hidden * stride, stride, hidden);
  }

  // Turns the gradient of hidden values into those of the gates' sums, for one row.
  template <typename T>
  static FUSED_RNN_INLINE void step_back(const GradientPlace<T>& place, Vec<T> grad_hidden) {
    const auto at = [&](int gate)
                        FUSED_RNN_INLINE { return load(place.gates + gate * place.hidden_size, place.units); };
    const cells::GRUGates<Vec<T>> gates = {at(0), at(1), at(2), at(3)};
    const auto grad = cells::gru_backward<Activation>(gates, load(place.previous, place.units), grad_hidden);
    store(place.grad_carried, grad_hidden, place.units);
    const Vec<T> grads[] = {grad.r, grad.z, grad.n, grad.hn};
    unroll<4>([&](auto gate)
                  FUSED_RNN_INLINE { store(place.grad_gates + gate * place.hidden_size, grads[gate], place.units); });
  }
};

}  // namespace

namespace CPU_CAPABILITY {

void gru(const RecurrentForward<float>& params) { ForwardLoop<GRUCell, float>(params).run(); }
void gru(const RecurrentForward<double>& params) { ForwardLoop<GRUCell, double>(params).run(); }
void gru_backward(const RecurrentBackward<float>& params) { BackwardLoop<GRUCell, float>(params).run(); }
void gru_backward(const RecurrentBackward<double>& params) { BackwardLoop<GRUCell, double>(params).run(); }

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
