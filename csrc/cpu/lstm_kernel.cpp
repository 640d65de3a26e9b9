// The LSTM on a processor: what its steps add to the loops over a recurrent layer.

#include "cells/lstm.h"
#include "cpu/activation.h"
#include "cpu/lstm.h"
#include "cpu/recurrent_backward.h"
#include "cpu/recurrent_forward.h"

namespace fused_rnn::cpu {
namespace {

struct LSTMCell {
  static constexpr int kGates = 4;
  // The gates' sums that the hidden values go into, and whether a gradient passes from one hidden value to the
  // previous.
  static constexpr Part kHiddenParts[] = {{0, 4}};
  static constexpr bool kCarriesHidden = false;

  // Both biases of the units of a block, one vector a gate.
  template <typename T>
  static void pack_bias(const RecurrentWeights<T>& weights, int64_t hidden, int64_t unit, int64_t units, T* packed) {
    for (int64_t gate = 0; gate < kGates; ++gate)
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
        const int64_t i = gate * hidden + unit + lane;
        packed[gate * kLanes<T> + lane] =
            weights.bias_ih && lane < units ? weights.bias_ih[i] + weights.bias_hh[i] : T(0);
      }
  }

  template <typename T, int kRows>
  static FUSED_RNN_INLINE void multiply_input(Tile<T, kRows>& tile, const T* a, int64_t row, const T* w,
                                              int64_t depth) {
    tile.template multiply<0, 1, 2, 3>(a, row, 1, w, kGates * kLanes<T>, depth);
  }
  template <typename T, int kRows>
  static FUSED_RNN_INLINE void multiply_hidden(Tile<T, kRows>& tile, const T* a, int64_t row, const T* w,
                                               int64_t depth) {
    multiply_input(tile, a, row, w, depth);
  }

  template <int kRows, typename T>
  static void dot_input(const T* a, int64_t row, const T* w, int64_t hidden, int64_t depth, int64_t units, T* sums) {
    dot_gates<kRows, 0, 1, 2, 3>(a, row, w, hidden, depth, units, sums);
  }
  template <int kRows, typename T>
  static void dot_hidden(const T* a, int64_t row, const T* w, int64_t hidden, int64_t depth, int64_t units, T* sums) {
    dot_gates<kRows, 0, 1, 2, 3>(a, row, w, hidden, depth, units, sums);
  }

  // Turns a tile of sums into states.
  template <typename T, int kRows>
  static FUSED_RNN_INLINE void finish(Tile<T, kRows>& tile, int64_t unit, const CellPlace<T>& place) {
    unroll<kRows>([&](auto row) FUSED_RNN_INLINE {
      auto& sum = tile.sum[row];
      T* cell_place = place.cell + row * place.hidden_size;
      cells::LSTMGates<Vec<T>> gates = {sum[0], sum[1], sum[2], sum[3]};
      Vec<T> cell = load(cell_place, place.units);
      const Vec<T> hidden = cells::lstm_forward<Activation>(gates, cell);
      store(cell_place, cell, place.units);
      store(place.hidden + row * place.hidden_row, hidden, place.units);
      if (place.gates) {
        const Vec<T> kept[] = {gates.i, gates.f, gates.g, gates.o};
        unroll<4>([&](auto gate) FUSED_RNN_INLINE {
          store(place.gates + (row * 4 + gate) * place.hidden_size, kept[gate], place.units);
        });
        store(place.cells + row * place.hidden_size, cell, place.units);
      }
    });
  }

  // tile += gradients of the sums, transposed weights.
  template <typename AnyTile, typename T>
  static FUSED_RNN_INLINE void multiply_back(AnyTile& tile, const T* a, int64_t row, const T* w, int64_t stride,
                                             int64_t hidden) {
    tile.template multiply<0, 1>(a, row, 1, w, stride, kGates * hidden);
  }

  // The hidden value of an output gate and a cell.
  template <typename T>
  static Vec<T> hidden(Vec<T> o, Vec<T> cell) {
    return o * Activation::tanh(cell);
  }

  // Turns the gradient of hidden values into those of the gates' sums, for one row.
  template <typename T>
  static FUSED_RNN_INLINE void step_back(const GradientPlace<T>& place, Vec<T> grad_hidden) {
    const auto at = [&](int gate)
                        FUSED_RNN_INLINE { return load(place.gates + gate * place.hidden_size, place.units); };
    const cells::LSTMGates<Vec<T>> gates = {at(0), at(1), at(2), at(3)};
    Vec<T> grad_cell = load(place.grad_carried, place.units);
    if (place.grad_cell) grad_cell += load(place.grad_cell, place.units);
    const auto grad = cells::lstm_backward<Activation>(gates, load(place.previous, place.units),
                                                       load(place.cell, place.units), grad_hidden, grad_cell);
    store(place.grad_carried, grad_cell, place.units);
    const Vec<T> grads[] = {grad.i, grad.f, grad.g, grad.o};
    unroll<4>([&](auto gate)
                  FUSED_RNN_INLINE { store(place.grad_gates + gate * place.hidden_size, grads[gate], place.units); });
  }
};

}  // namespace

namespace CPU_CAPABILITY {

void lstm(const RecurrentForward<float>& params) { ForwardLoop<LSTMCell, float>(params).run(); }
void lstm(const RecurrentForward<double>& params) { ForwardLoop<LSTMCell, double>(params).run(); }
void lstm_backward(const RecurrentBackward<float>& params) { BackwardLoop<LSTMCell, float>(params).run(); }
void lstm_backward(const RecurrentBackward<double>& params) { BackwardLoop<LSTMCell, double>(params).run(); }

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
