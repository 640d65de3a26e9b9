// From a cell and a type that are known at run time to the kernels that are built for them.

#include <bit>

#include "cuda/persistent/launch.cuh"
#include "cuda/recurrent.h"
#include "cuda/stepwise/pointwise.cuh"

namespace fused_rnn::cuda {

// The persistent kernels are built in persistent/instances/, a file for each cell, pass and type, and one more where
// warpgroups multiply, so that compilers can work side by side.
#define FUSED_RNN_BUILT_ELSEWHERE(Cell, T)                                                                 \
  extern template const char* launch_persistent<cells::Cell, T>(const PersistentForwardParams<T>& params,  \
                                                                void* stream);                             \
  extern template const char* launch_persistent<cells::Cell, T>(const PersistentBackwardParams<T>& params, \
                                                                void* stream);
#define FUSED_RNN_BUILT_ELSEWHERE_FOR_EACH_TYPE(Cell) \
  FUSED_RNN_BUILT_ELSEWHERE(Cell, float)              \
  FUSED_RNN_BUILT_ELSEWHERE(Cell, bfloat16)           \
  FUSED_RNN_BUILT_ELSEWHERE(Cell, float16)
FUSED_RNN_FOR_EACH_CELL(FUSED_RNN_BUILT_ELSEWHERE_FOR_EACH_TYPE)

#define FUSED_RNN_WARPGROUP_BUILT_ELSEWHERE(Cell, T)                                                     \
  extern template const char* launch_warpgroup<cells::Cell, T>(const PersistentForwardParams<T>& params, \
                                                               void* stream);                            \
  extern template const char* launch_warpgroup<cells::Cell, T>(const PersistentBackwardParams<T>& params, void* stream);
#define FUSED_RNN_WARPGROUP_BUILT_ELSEWHERE_FOR_EACH_TYPE(Cell) \
  FUSED_RNN_WARPGROUP_BUILT_ELSEWHERE(Cell, bfloat16)           \
  FUSED_RNN_WARPGROUP_BUILT_ELSEWHERE(Cell, float16)
FUSED_RNN_FOR_EACH_CELL(FUSED_RNN_WARPGROUP_BUILT_ELSEWHERE_FOR_EACH_TYPE)

namespace {

// Calls body.template operator()<Cell, T>() for the cell and the type named.
template <typename Body>
const char* with_types(cells::Kind cell, Element element, const Body& body) {
  return cells::with_cell(cell, [&]<typename Cell>() {
    switch (element) {
      case Element::kFloat32:
        return body.template operator()<Cell, float>();
      case Element::kBFloat16:
        return body.template operator()<Cell, bfloat16>();
      case Element::kFloat16:
        return body.template operator()<Cell, float16>();
      default:
        return body.template operator()<Cell, double>();
    }
  });
}

template <template <typename> typename Params>
const char* start_persistent(cells::Kind cell, Element element, const Params<void>& params, void* stream) {
  return with_types(cell, element, [&]<typename Cell, typename T>() -> const char* {
    if constexpr (sizeof(T) == 2)
      if (params.plan.split > 0) return launch_warpgroup<Cell, T>(std::bit_cast<Params<T>>(params), stream);
    if constexpr (__is_same(T, double))
      return "there is no persistent kernel for float64";
    else
      return launch_persistent<Cell, T>(std::bit_cast<Params<T>>(params), stream);
  });
}

template <template <typename, typename> typename Params>
const char* start_pointwise(cells::Kind cell, Element element, const Params<void, void>& params, void* stream) {
  return with_types(cell, element, [&]<typename Cell, typename T>() {
    return launch_pointwise<Cell, T>(std::bit_cast<Params<T, Accumulator<T>>>(params), stream);
  });
}

}  // namespace

const char* persistent(cells::Kind cell, Element element, const PersistentForwardParams<void>& params, void* stream) {
  return start_persistent<PersistentForwardParams>(cell, element, params, stream);
}
const char* persistent(cells::Kind cell, Element element, const PersistentBackwardParams<void>& params, void* stream) {
  return start_persistent<PersistentBackwardParams>(cell, element, params, stream);
}
const char* pointwise(cells::Kind cell, Element element, const PointwiseForwardParams<void, void>& params,
                      void* stream) {
  return start_pointwise<PointwiseForwardParams>(cell, element, params, stream);
}
const char* pointwise(cells::Kind cell, Element element, const PointwiseBackwardParams<void, void>& params,
                      void* stream) {
  return start_pointwise<PointwiseBackwardParams>(cell, element, params, stream);
}

}  // namespace fused_rnn::cuda
