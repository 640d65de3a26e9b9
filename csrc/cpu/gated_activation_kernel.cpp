// The gated activation of PixelCNN.

#include "cpu/conv/gate.h"
#include "cpu/gated_activation.h"

namespace fused_rnn::cpu {
namespace {

// Calls body(where a begins in the input, where the output begins, how many numbers) for parts of the blocks, each by
// one thread.
template <typename T, typename Body>
void for_each_part(int64_t blocks, int64_t count, int64_t threads, const Body& body) {
  constexpr int64_t kWorthAThread = 1 << 13;  // numbers, which take about as long as starting a thread
  const int64_t useful = smaller(threads, 1 + blocks * count / kWorthAThread);
  parallel(useful, [&](int64_t thread, int64_t team) {
    // Blocks may be few and long or many and short, so threads divide the numbers of all blocks.
    const Range mine = share(blocks * count, thread, team, kLanes<T>);
    for (int64_t i = mine.begin; i < mine.end;) {
      const int64_t block = i / count, first = i % count;
      const int64_t part = smaller(count - first, mine.end - i);
      body(2 * block * count + first, i, part);
      i += part;
    }
  });
}

template <typename T>
void gate(const T* input, T* output, int64_t blocks, int64_t count, int64_t threads) {
  for_each_part<T>(blocks, count, threads, [&](int64_t a, int64_t out, int64_t part) {
    gate_values(input + a, input + a + count, output + out, part);
  });
}

template <typename T>
void gate_backward(const T* grad_output, const T* input, T* grad_input, int64_t blocks, int64_t count,
                   int64_t threads) {
  for_each_part<T>(blocks, count, threads, [&](int64_t a, int64_t out, int64_t part) {
    gate_gradients(grad_output + out, input + a, input + a + count, grad_input + a, grad_input + a + count, part);
  });
}

}  // namespace

namespace CPU_CAPABILITY {

void gated_activation(const float* input, float* output, int64_t blocks, int64_t count, int64_t threads) {
  gate(input, output, blocks, count, threads);
}
void gated_activation(const double* input, double* output, int64_t blocks, int64_t count, int64_t threads) {
  gate(input, output, blocks, count, threads);
}

void gated_activation_backward(const float* grad_output, const float* input, float* grad_input, int64_t blocks,
                               int64_t count, int64_t threads) {
  gate_backward(grad_output, input, grad_input, blocks, count, threads);
}
void gated_activation_backward(const double* grad_output, const double* input, double* grad_input, int64_t blocks,
                               int64_t count, int64_t threads) {
  gate_backward(grad_output, input, grad_input, blocks, count, threads);
}

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
