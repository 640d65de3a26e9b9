// The gated activation of PixelCNN.

#include "cpu/conv/gate.h"
#include "cpu/gated_activation.h"

namespace fused_rnn::cpu {
namespace {

template <typename T>
void gate(const T* input, T* output, int64_t blocks, int64_t count, int64_t threads) {
  constexpr int64_t kWorthAThread = 1 << 13;  // numbers, which take about as long as starting a thread
  const int64_t useful = smaller(threads, 1 + blocks * count / kWorthAThread);
  parallel(useful, [&](int64_t thread, int64_t team) {
    // Blocks may be few and long or many and short, so threads divide the numbers of all blocks.
    const Range mine = share(blocks * count, thread, team, kLanes<T>);
    for (int64_t i = mine.begin; i < mine.end;) {
      const int64_t block = i / count, first = i % count;
      const int64_t part = smaller(count - first, mine.end - i);
      const T* a = input + 2 * block * count + first;
      gate_values(a, a + count, output + i, part);
      i += part;
    }
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

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
