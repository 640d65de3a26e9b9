// From the types known at run time to the kernels built for them.

#include <bit>

#include "cuda/gru.cuh"
#include "cuda/lstm.cuh"
#include "cuda/persistent/launch.cuh"
#include "cuda/stepwise/pointwise.cuh"
#include "cuda/recurrent.h"

namespace fused_rnn::cuda {

// Built in files of their own, for compilers to work side by side.
#define FUSED_RNN_BUILT_ELSEWHERE(Cell, T)                                                                   \
  extern template const char* launch_persistent<Cell, T>(const CudaForward<T, float>& params, void* stream); \
  extern template const char* launch_persistent<Cell, T>(const CudaBackward<T, float>& params, void* stream);
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
    return launch_pointwise<AnyCell, T>(std::bit_cast<Params<T, State<T>>>(params), stream);
  });
}

}  // namespace

const char* persistent(Cell cell, Element element, const CudaForward<void, void>& params, void* stream) {
  return start_persistent<CudaForward>(cell, element, params, stream);
}
const char* persistent(Cell cell, Element element, const CudaBackward<void, void>& params, void* stream) {
  return start_persistent<CudaBackward>(cell, element, params, stream);
}
const char* pointwise(Cell cell, Element element, const PointwiseForward<void, void>& params, void* stream) {
  return start_pointwise<PointwiseForward>(cell, element, params, stream);
}
const char* pointwise(Cell cell, Element element, const PointwiseBackward<void, void>& params, void* stream) {
  return start_pointwise<PointwiseBackward>(cell, element, params, stream);
}

}  // namespace fused_rnn::cuda
