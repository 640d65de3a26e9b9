// What the CUDA runtime says of this machine.

#pragma once

#include <cstdint>

namespace fused_rnn::cuda {

constexpr int kMostClusterBlocks = 16;  // the most blocks that a cluster has on any GPU

// What a GPU has for kernels.
struct Device {
  int multiprocessors;
  int64_t shared_bytes;  // that a block may have
  // How many clusters of so many blocks run at once, each block on a multiprocessor of its own. Zeros where the GPU, or
  // what was built for it, has no such clusters.
  int clusters[kMostClusterBlocks + 1];
  int most_blocks;  // that one launch may have, if the user has set a limit; else 0
  bool hopper;      // whether it has compute capability 9.0, and kernels were built for that alone

  constexpr bool operator==(const Device& other) const = default;
};

// Returns the CUDA version that the kernels were built with, such as "13.0"; a static string.
const char* toolkit_version();

// Returns how many GPUs the driver offers; 0 without a driver.
int device_count();

// Returns what device `index` of the machine has for kernels: asked for once, then remembered.
Device device_at(int index);

}  // namespace fused_rnn::cuda
