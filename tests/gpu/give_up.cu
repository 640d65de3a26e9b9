// A forward pass in which one block leaves out its stores: test_cuda_gives_up.py builds it from an edited copy of csrc/
// and expects the kernel to end by itself. Prints what CUDA says after it.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

#include "cuda/persistent/launch.cuh"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

int main(int count, char** arguments) {
  const bool cluster = count > 1 && std::strcmp(arguments[1], "cluster") == 0;
  constexpr int64_t kTime = 3, kBatch = 4, kHidden = 24, kGates = cells::LSTM::kGates;
  char* memory = nullptr;
  constexpr size_t kEach = 64 * 1024;  // more than any of the arrays takes
  if (cudaMalloc(&memory, 8 * kEach) != cudaSuccess || cudaMemset(memory, 0, 8 * kEach) != cudaSuccess) return 1;
  const auto array = [&](int index) {
    return reinterpret_cast<bfloat16*>(memory + static_cast<size_t>(index) * kEach);
  };

  PersistentForwardParams<bfloat16> params = {};
  params.steps = {kTime, kBatch, kTime * kBatch, nullptr, nullptr, nullptr};
  params.plan.cluster = cluster;
  params.plan.units = 8;
  params.plan.blocks = kHidden / params.plan.units;
  params.plan.groups = 1;
  params.plan.sequences = kBatch;
  params.plan.row_tiles = static_cast<int32_t>(kGates) * params.plan.units / kTileRows;
  params.plan.batch_tiles = 1;
  params.plan.partials = 2;
  params.plan.directions = 1;
  params.hidden_size = kHidden;
  params.directions = 1;
  params.weight_hh[0] = array(0);
  params.h0 = array(1);
  params.c0 = array(2);
  params.output = array(3);
  params.h_n = array(4);
  params.c_n = array(5);
  params.gates = array(6);
  if (const char* error = launch_persistent<cells::LSTM, bfloat16>(params, nullptr)) {
    std::printf("not launched: %s\n", error);
    return 1;
  }
  std::printf("ended: %s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  return 0;
}
