// Runs random problems through the kernels of two instruction sets and compares all that they write.
//
//     compare PROBLEMS SEED
//
// The macros FIRST and SECOND name the instruction sets. What is compared is float32, each fourth time float64.

#include "convolution.h"
#include "cpu/gru.h"
#include "cpu/lstm.h"
#include "cpu/masked_conv2d.h"
#include "recurrent.h"

namespace {

namespace first = fused_rnn::cpu::FIRST;
namespace second = fused_rnn::cpu::SECOND;

#define RUN_RECURRENT(cpu)                                                         \
  [&](auto& call) {                                                                \
    p.lstm ? cpu::lstm(call.forward) : cpu::gru(call.forward);                     \
    if (!p.trains) return;                                                         \
    p.lstm ? cpu::lstm_backward(call.backward) : cpu::gru_backward(call.backward); \
  }
#define RUN_CONVOLUTION(cpu)                                          \
  [&](auto& call) {                                                   \
    cpu::masked_conv2d(call.forward);                                 \
    cpu::masked_conv2d_input_gradient(call.input_gradient);           \
    cpu::masked_conv2d_parameter_gradients(call.parameter_gradients); \
  }

// Both calls get arrays of the same numbers.
template <typename T, typename Call, typename Problem, typename First, typename Second>
double compare(const Problem& p, uint32_t seed, const First& run_first, const Second& run_second) {
  Random a(seed), b(seed);
  Call call_first(p, a), call_second(p, b);
  run_first(call_first);
  run_second(call_second);
  return call_first.arrays.distance(call_second.arrays, (sizeof(T) == 8 ? "double " : "float ") + p.text());
}

template <typename T>
double compare_one(uint32_t seed) {
  Random random(seed);
  if (random.once_in(4)) {
    const ConvolutionProblem p(random);
    return compare<T, ConvolutionCall<T>>(p, seed, RUN_CONVOLUTION(first), RUN_CONVOLUTION(second));
  }
  const RecurrentProblem p(random, sizeof(T) == 8);
  return compare<T, RecurrentCall<T>>(p, seed, RUN_RECURRENT(first), RUN_RECURRENT(second));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::printf("usage: %s PROBLEMS SEED\n", argv[0]), 2;
  const int problems = std::stoi(argv[1]);
  const auto seed = static_cast<uint32_t>(std::stoul(argv[2]));
  double worst[2] = {};
  int bad = 0;
  for (int i = 0; i < problems; ++i) {
    const bool wide = i % 4 == 3;
    const uint32_t own = seed + static_cast<uint32_t>(i) * 7919;
    const double distance = wide ? compare_one<double>(own) : compare_one<float>(own);
    bad += !(distance <= (wide ? Arrays<double>::kTolerance : Arrays<float>::kTolerance));
    worst[wide] = distance <= worst[wide] ? worst[wide] : distance;
    if (i % 50 == 49 || i + 1 == problems) {
      std::printf("%d problems, %d differ; worst float %.2g, double %.2g\n", i + 1, bad, worst[0], worst[1]);
      std::fflush(stdout);
    }
  }
  return bad != 0;
}
