// The evaluation of a network of masked convolutions pixel by pixel on a GPU, which draws each pixel. Images do not
// depend on one another, so each thread block has images of its own, goes through all of their pixels, and waits for no
// other block.

#pragma once

#include "cuda/kit/device_info.h"
#include "cuda/pixelwise/task.h"
#include "params/pixel_network.h"

namespace fused_rnn::cuda {

// What is known of a network before it is evaluated, for float and double. The arrays in `params`, such as the nodes,
// are in the memory of the host; the pointers in values and convolutions are to device memory, and may be followed by
// the GPU alone, like those in params.draw. params.threads is not used.

// Writes what the kernel needs to know of the nodes: params.node_count tasks, for the caller to copy to the GPU.
void make_tasks(const PixelNetworkParams<float>& params, PixelTask<float>* tasks);
void make_tasks(const PixelNetworkParams<double>& params, PixelTask<double>* tasks);

// Returns how many nodes a network may have on a GPU, whose blocks keep the tasks in shared memory.
int64_t most_nodes(int64_t element_bytes, const Device& gpu);

// Starts the kernel on a stream (a cudaStream_t), and returns null, or what is wrong. `tasks` are in device memory, and
// live until the kernel has run, as do all arrays. params.not_finite is in device memory, too.
const char* pixel_network(const PixelNetworkParams<float>& params, const PixelTask<float>* tasks, const Device& gpu,
                          void* stream);
const char* pixel_network(const PixelNetworkParams<double>& params, const PixelTask<double>* tasks, const Device& gpu,
                          void* stream);

}  // namespace fused_rnn::cuda
