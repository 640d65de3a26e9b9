// The kernel on the CPU that evaluates a network of masked convolutions pixel by pixel, for each instruction set.
// params/pixel_network.h says which arrays it reads and writes.

#pragma once

#include "cpu/kit/per_capability.h"
#include "params/pixel_network.h"

namespace fused_rnn::cpu {

FUSED_RNN_PER_CAPABILITY(
    // Packs the weights of all convolutions, and returns how many values that takes.
    int64_t pixel_network_pack(const PixelNetworkPackParams<float>& params);
    int64_t pixel_network_pack(const PixelNetworkPackParams<double>& params);
    // Computes, and draws, some pixels of a row. All pixels before them must have been computed.
    void pixel_network(const PixelNetworkParams<float>& params);
    void pixel_network(const PixelNetworkParams<double>& params);)

}  // namespace fused_rnn::cpu
