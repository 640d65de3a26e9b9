// From the types known at run time to the kernels built for them.

#include <bit>

#include "cuda/gru.cuh"
#include "cuda/lstm.cuh"
#include "cuda/persistent/launch.cuh"
#include "cuda/recurrent.h"
#include "cuda/stepwise/pointwise.cuh"

namespace fused_rnn::cuda {

// Built in files of their own, for compilers to work side by side.
#define FUSED_RNN_BUILT_ELSEWHERE(Cell, T)                                                                 \
  extern template const char* launch_persistent<Cell, T>(const PersistentForwardParams<T, float>& params,  \
                                                         void* stream);                                    \
  extern template const char* launch_persistent<Cell, T>(const PersistentBackwardParams<T, float>& params, \
                                                         void* stream);
FUSED_RNN_BUILT_ELSEWHERE(LSTMCell, float)
FUSED_RNN_BUILT_ELSEWHERE(LSTMCell, bfloat16)
FUSED_RNN_BUILT_ELSEWHERE(LSTMCell, float16)
FUSED_RNN_BUILT_ELSEWHERE(GRUCell, float)
FUSED_RNN_BUILT_ELSEWHERE(GRUCell, bfloat16)
FUSED_RNN_BUILT_ELSEWHERE(GRUCell, float16)

namespace {

// Calls body.template operator()<Cell, T>() for the types named.
template <typename Body>
const char* with_types(Cell cell, Element element, const Body& body) {
  const auto with_cell = [&]<typename T>() {
    return cell == Cell::kLSTM ? body.template operator()<LSTMCell, T>() : body.template operator()<GRUCell, T>();
  };
  switch (element) {
    case Element::kFloat32:
      return with_cell.template operator()<float>();
    case Element::kBFloat16:
      return with_cell.template operator()<bfloat16>();
    case Element::kFloat16:
      return with_cell.template operator()<float16>();
    default:
      return with_cell.template operator()<double>();
  }
}

template <template <typename, typename> typename Params>
const char* start_persistent(Cell cell, Element element, const Params<void, void>& params, void* stream) {
  return with_types(cell, element, [&]<typename AnyCell, typename T>() -> const char* {
    if constexpr (__is_same(T, double))
      return "there is no persistent kernel for float64";
    else
      return launch_persistent<AnyCell, T>(std::bit_cast<Params<T, float>>(params), stream);
  });
}

template <template <typename, typename> typename Params>
const char* start_pointwise(Cell cell, Element element, const Params<void, void>& params, void* stream) {
  return with_types(cell, element, [&]<typename AnyCell, typename T>() {
    return launch_pointwise<AnyCell, T>(std::bit_cast<Params<T, Accumulator<T>>>(params), stream);
  });
}

}  // namespace

const char* persistent(Cell cell, Element element, const PersistentForwardParams<void, void>& params, void* stream) {
  return start_persistent<PersistentForwardParams>(cell, element, params, stream);
}
const char* persistent(Cell cell, Element element, const PersistentBackwardParams<void, void>& params, void* stream) {
  return start_persistent<PersistentBackwardParams>(cell, element, params, stream);
}
const char* pointwise(Cell cell, Element element, const PointwiseForwardParams<void, void>& params, void* stream) {
  return start_pointwise<PointwiseForwardParams>(cell, element, params, stream);
}
const char* pointwise(Cell cell, Element element, const PointwiseBackwardParams<void, void>& params, void* stream) {
  return start_pointwise<PointwiseBackwardParams>(cell, element, params, stream);
}

}  // namespace fused_rnn::cuda
