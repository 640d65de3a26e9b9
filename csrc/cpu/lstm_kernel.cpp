// The LSTM on a processor: what its steps add to the loops over a recurrent layer.

#include "cells/lstm.h"
#include "cpu/kit/activation.h"
#include "cpu/lstm.h"
#include "cpu/recurrent/backward.h"
#include "cpu/recurrent/forward.h"

namespace fused_rnn::cpu {
namespace {

struct LSTMCell {
  static constexpr int kGates = 4;
  // The gates' sums that the hidden values go into, and whether a gradient passes from one hidden value to the
  // previous.
  static constexpr Part kHiddenParts[] = {{0, 4}};
  static constexpr bool kCarriesHidden = false;

  // Which of the four sums a gate's product of the hidden values goes into.
  static constexpr int hidden_sum(int gate) { return gate; }

  // Both biases of the units of a block, [4, width].
  template <typename T>
  static void pack_bias(const StoredWeights<T>& weights, int64_t hidden, int64_t unit, int64_t units, T* packed,
                        int64_t width) {
    for (int64_t gate = 0; gate < kGates; ++gate)
      for (int64_t lane = 0; lane < width; ++lane) {
        const int64_t i = gate * hidden + unit + lane;
        packed[gate * width + lane] = weights.bias_ih && lane < units ? weights.bias_ih[i] + weights.bias_hh[i] : T(0);
      }
  }

  // Turns the sums of one vector of units, gate stride `stride`, into states.
  template <typename T>
  static FUSED_RNN_INLINE void finish(const T* sums, int64_t stride, const CellPlace<T>& place) {
    const auto sum = [&](int gate) FUSED_RNN_INLINE { return Vec<T>::loadu(sums + gate * stride); };
    cells::LSTMGates<Vec<T>> gates = {sum(0), sum(1), sum(2), sum(3)};
    Vec<T> cell = load(place.cell, place.units);
    const Vec<T> hidden = cells::lstm_forward<Activation>(gates, cell);
    store(place.cell, cell, place.units);
    store(place.hidden, hidden, place.units);
    if (place.gates) {
      const Vec<T> kept[] = {gates.i, gates.f, gates.g, gates.o};
      unroll<4>([&](auto gate)
                    FUSED_RNN_INLINE { store(place.gates + gate * place.hidden_size, kept[gate], place.units); });
      store(place.cells, cell, place.units);
    }
  }

  // tile += gradients of the sums times a panel of weights.
  template <typename AnyTile, typename T>
  static FUSED_RNN_INLINE void multiply_back(AnyTile& tile, const T* a, int64_t row, const T* panel, int64_t hidden,
                                             Lines<T> next) {
    tile.multiply_in_parts(a, row, 1, panel, kPanel<T>, kGates * hidden, 0, next);
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

void lstm(const RecurrentForwardParams<float>& params) { run_forward<LSTMCell>(params); }
void lstm(const RecurrentForwardParams<double>& params) { ForwardLoop<LSTMCell, double>(params).run(); }
void lstm_backward(const RecurrentBackwardParams<float>& params) { BackwardLoop<LSTMCell, float>(params).run(); }
void lstm_backward(const RecurrentBackwardParams<double>& params) { BackwardLoop<LSTMCell, double>(params).run(); }

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
