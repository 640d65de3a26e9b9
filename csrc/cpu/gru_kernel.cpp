// The GRU on a processor: what its steps add to the loops over a recurrent layer.

#include "cells/gru.h"
#include "cpu/gru.h"
#include "cpu/kit/activation.h"
#include "cpu/recurrent/backward.h"
#include "cpu/recurrent/forward.h"

namespace fused_rnn::cpu {
namespace {

struct GRUCell {
  static constexpr int kGates = 3;
  // The gates' sums that the hidden values go into, and whether a gradient passes from one hidden value to the
  // previous.
  static constexpr Part kHiddenParts[] = {{0, 2}, {3, 1}};
  static constexpr bool kCarriesHidden = true;

  // Which of the four sums a gate's product of the hidden values goes into.
  static constexpr int hidden_sum(int gate) { return gate < 2 ? gate : 3; }

  // The biases of the units of a block, [4, width]: of r, of z, of the input's and of the recurrent part of n.
  template <typename T>
  static void pack_bias(const StoredWeights<T>& weights, int64_t hidden, int64_t unit, int64_t units, T* packed,
                        int64_t width) {
    for (int64_t lane = 0; lane < width; ++lane) {
      const bool used = weights.bias_ih && lane < units;
      const auto at = [&](const T* bias, int64_t gate) { return used ? bias[gate * hidden + unit + lane] : T(0); };
      packed[lane] = at(weights.bias_ih, 0) + at(weights.bias_hh, 0);
      packed[width + lane] = at(weights.bias_ih, 1) + at(weights.bias_hh, 1);
      packed[2 * width + lane] = at(weights.bias_ih, 2);
      packed[3 * width + lane] = at(weights.bias_hh, 2);
    }
  }

  // Turns the sums of one vector of units, gate stride `stride`, into states.
  template <typename T>
  static FUSED_RNN_INLINE void finish(const T* sums, int64_t stride, const CellPlace<T>& place) {
    const auto sum = [&](int gate) FUSED_RNN_INLINE { return Vec<T>::loadu(sums + gate * stride); };
    cells::GRUGates<Vec<T>> gates = {sum(0), sum(1), sum(2), sum(3)};
    const Vec<T> hidden = cells::gru_forward<Activation>(gates, load(place.previous, place.units));
    store(place.hidden, hidden, place.units);
    if (place.gates) {
      const Vec<T> kept[] = {gates.r, gates.z, gates.n, gates.hn};
      unroll<4>([&](auto gate)
                    FUSED_RNN_INLINE { store(place.gates + gate * place.hidden_size, kept[gate], place.units); });
    }
  }

  // tile += gradients of the sums times a panel of weights.
  template <typename AnyTile, typename T>
  static FUSED_RNN_INLINE void multiply_back(AnyTile& tile, const T* a, int64_t row, const T* panel, int64_t hidden,
                                             Lines<T> next) {
    tile.multiply_in_parts(a, row, 1, panel, kPanel<T>, 2 * hidden, 0, next);
    tile.multiply_in_parts(a + 3 * hidden, row, 1, panel + 2 * hidden * kPanel<T>, kPanel<T>, hidden, 0,
                           next.from(2 * hidden));
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

void gru(const RecurrentForwardParams<float>& params) { run_forward<GRUCell>(params); }
void gru(const RecurrentForwardParams<double>& params) { ForwardLoop<GRUCell, double>(params).run(); }
void gru_backward(const RecurrentBackwardParams<float>& params) { BackwardLoop<GRUCell, float>(params).run(); }
void gru_backward(const RecurrentBackwardParams<double>& params) { BackwardLoop<GRUCell, double>(params).run(); }

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
