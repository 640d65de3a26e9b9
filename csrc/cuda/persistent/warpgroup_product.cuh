// The product inside a step where a warpgroup multiplies: 64 sequences times the rows of the recurrent weights, with
// the matrix instructions of Hopper. The sequences are on the left, from registers: a lane's 16 bytes of a chunk are
// what the instructions take of two rows, if the depth is counted in the order in which lanes hold it. The weights are
// on the right, in shared memory, in that order of the depth.
//
// In a cluster each block multiplies a part of the depth for the units of all its blocks. It reads only that part of
// what was handed over, and stores each block's partial sums in that block's shared memory.

#pragma once

#include "cuda/kit/hopper.cuh"
#include "cuda/persistent/product.cuh"

namespace fused_rnn::cuda {

// Where the weights of a warpgroup are: rows of 128 bytes, which hold two chunks of one row of the weights.
template <typename Traits>
struct WarpgroupWeights {
  static constexpr int kOwnRows = Traits::kRowTiles * kTileRows;  // rows of the weights of one block
  static constexpr int kColumns = Traits::kSplit * kOwnRows;      // of the product: the rows of all blocks
  static constexpr int kPairBytes = kColumns * kRowBytes;         // of two chunks of all rows
  static_assert(2 * kChunkBytes == kRowBytes, "two chunks fill a row");

  // Stores 16 bytes of the weights of the cluster's block `owner`: the words 2 * h and 2 * h + 1 belong to the h-th
  // instruction of the chunk, where they are the words `vector` and 4 + `vector` of its depth.
  static FUSED_RNN_DEVICE void store(char* shared, int owner, int row, int chunk, int vector, const uint4& value) {
    char* const pair = shared + chunk / 2 * kPairBytes;
    const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int w = 0; w < 4; ++w)
      store_operand(reinterpret_cast<uint32_t*>(chunk_at(pair, owner * kOwnRows + row, chunk % 2 * 4 + w)) + vector,
                    words[w]);
  }

  // Loads the weights of the cluster's block `owner`; `at` is as for load_weights.
  template <typename At>
  static FUSED_RNN_DEVICE void load(char* shared, const SharedLayout& layout, int part, int owner, const At& at) {
    const int chunks = layout.chunks_of_part(Traits::kSplit), vectors = Traits::kSegments * chunks * 4;
#pragma unroll 4
    for (int index = threadIdx.x; index < kOwnRows * vectors; index += kThreads) {
      const auto [row, vector] = At::split(index, kOwnRows, vectors);
      const int chunk = vector / 4, of_segment = part + chunk % chunks * Traits::kSplit;
      const int k = (of_segment * 4 + vector % 4) * MmaTraits<typename Traits::T>::kPerVector;
      store(shared, owner, row, chunk, vector % 4, at(row, chunk / chunks, k));
    }
  }

  // The operand of the instruction `half` of a chunk.
  static FUSED_RNN_DEVICE uint64_t operand(uint32_t address, int chunk, int half) {
    return matrix_descriptor(
        address + static_cast<uint32_t>(chunk / 2 * kPairBytes + chunk % 2 * kChunkBytes + half * 32), 8 * kRowBytes,
        0);
  }
};

template <typename Traits>
class WarpgroupProduct {
  using T = typename Traits::T;
  using Weights = WarpgroupWeights<Traits>;
  using Received = typename Handover<Traits>::Received;
  static constexpr int kChunks = Traits::kChunksInFlight, kColumns = Weights::kColumns;
  static constexpr int kBatches = kColumns > 64 ? 3 : 4;  // of chunks: all but one are loaded while that is multiplied

 public:
  // Multiplies the block's part of what was handed over for 64 sequences; the four warps of a warpgroup call it.
  FUSED_RNN_DEVICE void run(const char* weights, const SharedLayout& layout, int part, const Handover<Traits>& handover,
                            const Source (&sources)[Traits::kLaneSequences], int lane) {
    const uint32_t address = shared_address(weights);
    const int chunks = layout.chunks_of_part(Traits::kSplit);
    const int count = Traits::kSegments * chunks / kChunks;
    Received received[kBatches];
    int segment = 0, first = 0;  // of the next batch that is requested
    const auto request = [&](Received& into) {
      handover.request(into, sources, segment, part + first * Traits::kSplit, lane);
      first += kChunks;
      if (first < chunks) return;
      first = 0;
      ++segment;
    };
#pragma unroll
    for (int b = 0; b < kBatches; ++b)
      if (b < count) request(received[b]);
    bool add = false;
    for (int index = 0; index < count; index += kBatches)
#pragma unroll
      for (int b = 0; b < kBatches; ++b) {
        if (index + b >= count) break;
        handover.await(received[b], sources);
        matrices_begin();
#pragma unroll
        for (int j = 0; j < kChunks; ++j, add = true) {
          multiply(received[b].value[0][j], address, (index + b) * kChunks + j, 0, add);
          multiply(received[b].value[0][j], address, (index + b) * kChunks + j, 1, true);
        }
        matrices_started();
        // No product is left unfinished while lanes wait for values, each in its own loop: the compiler would run all
        // products one after another. The loads of the other batches go on meanwhile.
        matrices_done<0>();
        sums_change(sum_);
        if (index + b + kBatches < count) request(received[b]);
      }
  }

  // Stores the sums of each block of the cluster into its shared memory: [kSequences][partial_stride].
  FUSED_RNN_DEVICE void store(float* partial, int warp, int lane) const {
    constexpr int kStride = partial_stride(Traits::kRowTiles);
    float* const at = partial + (warp * 16 + lane / 4) * kStride + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int owner = j * 8 / Weights::kOwnRows;
        float* const to = at + h * 8 * kStride + j * 8 % Weights::kOwnRows;
        const float2 pair = {sum_[4 * j + 2 * h], sum_[4 * j + 2 * h + 1]};
        if constexpr (Traits::kSplit > 1)
          store_shared_of(to, owner, uint2{bits_as<uint32_t>(pair.x), bits_as<uint32_t>(pair.y)});
        else
          *reinterpret_cast<float2*>(to) = pair;
      }
  }

 private:
  FUSED_RNN_DEVICE void multiply(const uint4 (&rows)[2], uint32_t address, int chunk, int half, bool add) {
    const uint4 &a = rows[0], &b = rows[1];
    const uint64_t right = Weights::operand(address, chunk, half);
    multiply_from_registers<std::is_same_v<T, bfloat16>, kColumns>(sum_, half ? a.z : a.x, half ? b.z : b.x,
                                                                   half ? a.w : a.y, half ? b.w : b.y, right, add);
  }

  float sum_[kColumns / 2];
};

}  // namespace fused_rnn::cuda
