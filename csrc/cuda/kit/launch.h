// What launches need of the CUDA runtime besides the launch itself.

#pragma once

namespace fused_rnn::cuda {

// What launch() returns if the GPU has no room for all blocks at once, though its properties say so: under MPS or in a
// green context a process has a part of it. It is compared by its address.
inline constexpr char kDoesNotFit[] = "the GPU has no room for all thread blocks at once";

// Lets a kernel be launched on the current device with as much shared memory as a block can have, and with clusters of
// more than 8 blocks if asked. What is set is the same for every launch, so that host threads that launch a kernel with
// different sizes do not take from one another what they need. Returns null, or what CUDA says is wrong.
const char* prepare_kernel(const void* kernel, bool large_clusters);

// Returns whether what is launched on a stream is being captured in a CUDA graph.
bool is_capturing(void* stream);

}  // namespace fused_rnn::cuda
