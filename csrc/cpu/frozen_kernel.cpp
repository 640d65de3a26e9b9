// The kernels of frozen layers on the CPU, for every cell: they pack the weights of a layer once, and run it with them.

#include <type_traits>

#include "cells/cells.h"
#include "cpu/kit/bytes.h"
#include "cpu/kit/pairs.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/widened_pairs.h"
#include "cpu/recurrent.h"
#include "cpu/recurrent/forward.h"
#include "cpu/recurrent/packed_weights.h"
#include "cpu/recurrent/plan.h"
#include "cpu/recurrent/schedule.h"

namespace fused_rnn::cpu {
namespace {

// Calls body.template operator()<Factors>() with the kind of elements of a form. Float64 has only one.
template <typename T, typename Body>
auto with_factors(const RecurrentForwardParams<T>& params, const Body& body) {
  if constexpr (std::is_same_v<T, float>) {
    if constexpr (Pairs::kBuilt)
      if (params.frozen.form == FrozenForm::kPairs) return body.template operator()<Pairs>();
    if (params.frozen.form == FrozenForm::kBFloat16) return body.template operator()<WidenedPairs>();
    if (params.frozen.form == FrozenForm::kInt8) return body.template operator()<Bytes>();
  }
  return body.template operator()<Values<T>>();
}

}  // namespace

namespace CPU_CAPABILITY {

template <typename Cell, typename T>
int64_t recurrent_freeze(RecurrentForwardParams<T>& params) {
  if (!params.frozen.data) params.frozen.block_units = block_units(params.sizes, kRegisters<T>);
  return with_factors(params, [&]<typename Factors>() {
    const ForwardPlan plan =
        plan_frozen(cells::describe<Cell>(), params.sizes, params.frozen.block_units, Factors::kTerms);
    PackedWeights<Cell, T, Factors> weights(plan, params);
    if (params.frozen.data) {
      ThreadScratch<T> widened(params.sizes.threads, weights.widened_size());
      parallel(params.sizes.threads,
               [&](int64_t thread, int64_t count) { weights.pack(thread, count, widened.of(thread)); });
    }
    return weights.size();
  });
}

template <typename Cell, typename T>
void recurrent_frozen(const RecurrentForwardParams<T>& params) {
  with_factors(params, [&]<typename Factors>() { ForwardLoop<Cell, T, Factors, true>(params).run(); });
}

#define FUSED_RNN_INSTANTIATE_FROZEN(Cell)                                                         \
  template int64_t recurrent_freeze<cells::Cell, float>(RecurrentForwardParams<float> & params);   \
  template int64_t recurrent_freeze<cells::Cell, double>(RecurrentForwardParams<double> & params); \
  template void recurrent_frozen<cells::Cell, float>(const RecurrentForwardParams<float>& params); \
  template void recurrent_frozen<cells::Cell, double>(const RecurrentForwardParams<double>& params);
FUSED_RNN_FOR_EACH_CELL(FUSED_RNN_INSTANTIATE_FROZEN)

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
