// Runs random problems with the kernels of two instruction sets, and compares everything that they write.
//
//     compare PROBLEMS SEED [pairs]
//
// The macros FIRST and SECOND name the instruction sets; PLAIN stands for the plain loops of plain.h. Problems are in
// float32, every fourth one in float64. With `pairs`, SECOND multiplies bfloat16 weights in pairs: by AVX512_BF16, or
// by its replacement in cpu/kit/pairs.h.

#include "convolution.h"
#include "cpu/masked_conv2d.h"
#include "cpu/recurrent.h"
#include "plain.h"
#include "recurrent.h"

namespace {

namespace first = fused_rnn::cpu::FIRST;
namespace second = fused_rnn::cpu::SECOND;

#define RUN_RECURRENT(cpu)                                                     \
  [&](auto& call) {                                                            \
    with_cell(p.kind, [&]<typename Cell>() {                                   \
      if (p.frozen) {                                                          \
        auto& params = call.forward;                                           \
        params.frozen = {nullptr, p.form, 0, p.projection > 0};                \
        params.frozen.data = call.packed(cpu::recurrent_freeze<Cell>(params)); \
        cpu::recurrent_freeze<Cell>(params);                                   \
        call.forget_weights();                                                 \
        return cpu::recurrent_frozen<Cell>(params);                            \
      }                                                                        \
      cpu::recurrent_forward<Cell>(call.forward);                              \
      if (p.trains) cpu::recurrent_backward<Cell>(call.backward);              \
    });                                                                        \
  }
#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
#define RUN_CONVOLUTION(cpu)                                          \
  [&](auto& call) {                                                   \
    cpu::masked_conv2d(call.forward);                                 \
    cpu::masked_conv2d_input_gradient(call.input_gradient);           \
    cpu::masked_conv2d_parameter_gradients(call.parameter_gradients); \
  }

// Runs SECOND in pairs.
void run_in_pairs(const RecurrentProblem& p, RecurrentCall<float>& call) {
  with_cell(p.kind, [&]<typename Cell>() {
    PairedCall paired(p, call);
    paired.run_forward<Cell>([](const auto& params) { second::recurrent_forward<Cell>(params); });
    if (p.trains) paired.run_backward([](const auto& params) { second::recurrent_backward<Cell>(params); });
  });
}

enum Kind { kFloat, kDouble, kPairs };
struct Compared {
  Kind kind;
  double distance, tolerance;
};

// Runs a problem twice, with arrays of the same numbers, and returns the distance of the results.
template <typename T, typename Call, typename Problem, typename First, typename Second>
double compare(const Problem& p, uint32_t seed, double tolerance, const First& run_first, const Second& run_second) {
  Random a(seed), b(seed);
  Call call_first(p, a), call_second(p, b);
  run_first(call_first);
  run_second(call_second);
  return call_first.arrays.distance(call_second.arrays, (sizeof(T) == 8 ? "double " : "float ") + p.text(), tolerance);
}

// Whether both instruction sets can run layers that are frozen as bytes.
bool both_quantise() {
  const std::string names[] = {TEXT(FIRST), TEXT(SECOND)};
  for (const std::string& name : names)
    if (name == "PLAIN" || (name == "AVX512" && !__builtin_cpu_supports("avx512vnni"))) return false;
  return true;
}

template <typename T>
Compared compare_one(uint32_t seed, bool in_pairs) {
  Random random(seed);
  const Kind kind = sizeof(T) == 8 ? kDouble : kFloat;
  const double exact = Arrays<T>::kTolerance;
  if (random.once_in(4)) {
    const ConvolutionProblem p(random);
    return {kind, compare<T, ConvolutionCall<T>>(p, seed, exact, RUN_CONVOLUTION(first), RUN_CONVOLUTION(second)),
            exact};
  }
  RecurrentProblem p(random, sizeof(T) == 8);
  // The plain loops do not quantise, and with AVX-512 the kernels that do need AVX512_VNNI.
  if (p.form == FrozenForm::kInt8 && !both_quantise()) p.form = FrozenForm::kValues;
  // A rounding that moves a sum of ReLU across zero switches a whole gradient on or off.
  const bool jumps = p.kind == cells::Kind::kRNNReLU && p.trains;
  in_pairs = in_pairs && p.stored == StoredType::kBFloat16 && !jumps && !p.frozen;
  if constexpr (sizeof(T) == 4)
    if (in_pairs) {
      const auto run_second = [&](auto& call) { run_in_pairs(p, call); };
      const double rounded = Arrays<T>::kRounded;
      return {kPairs, compare<T, RecurrentCall<T>>(p, seed, rounded, RUN_RECURRENT(first), run_second), rounded};
    }
  const bool rounds = p.frozen && p.form == FrozenForm::kInt8 && p.sizes.steps.time > 1;
  const double tolerance = rounds ? Arrays<T>::kRounded : exact;
  const double distance = compare<T, RecurrentCall<T>>(p, seed, tolerance, RUN_RECURRENT(first), RUN_RECURRENT(second));
  return {kind, distance, tolerance};
}

}  // namespace

int main(int argc, char** argv) {
  const bool in_pairs = argc == 4 && std::string(argv[3]) == "pairs";
  if (argc != 3 && !in_pairs) return std::printf("usage: %s PROBLEMS SEED [pairs]\n", argv[0]), 2;
  const int problems = std::stoi(argv[1]);
  const auto seed = static_cast<uint32_t>(std::stoul(argv[2]));
  double worst[3] = {};
  int bad = 0;
  for (int i = 0; i < problems; ++i) {
    const uint32_t problem_seed = seed + static_cast<uint32_t>(i) * 7919;
    const auto [kind, distance, tolerance] =
        i % 4 == 3 ? compare_one<double>(problem_seed, false) : compare_one<float>(problem_seed, in_pairs);
    bad += !(distance <= tolerance);
    worst[kind] = distance <= worst[kind] ? worst[kind] : distance;
    if (i % 50 == 49 || i + 1 == problems) {
      std::printf("%d problems, %d differ; worst float %.2g, double %.2g, pairs %.2g\n", i + 1, bad, worst[kFloat],
                  worst[kDouble], worst[kPairs]);
      std::fflush(stdout);
    }
  }
  return bad != 0;
}
