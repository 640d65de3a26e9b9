// How the thread blocks of a group hand the values of a step to one another, without flags and without barriers.
//
// A step of one block needs what every block of its group made of the step before: forward hidden values, backward
// gradients of the gates' sums. Each 32-bit word that travels is its own flag. Its slot holds the sentinel, a word of
// ones, until the value is stored; whoever needs the value loads the word again until it is no longer the sentinel. A
// word is stored and loaded whole, so it is either missing or final, and nobody relies on the order of two words.
// Therefore no fence is needed either. As float, or as two values of half precision, a word of ones is NaN; a computed
// NaN of the same bits is stored as another NaN, so that it does not look missing for ever.
//
// Whoever waits gives up after 30 seconds and ends the kernel with a message: a value that does not come is a fault of
// this code, which must not occupy a user's GPU for ever.
//
// On a grid the values travel through the L2 cache, in the array where they are wanted anyway: `output`, or
// `grad_gates`. It is filled with the sentinel before the launch, and each of its words is stored once, so a slot never
// needs to be emptied. The launch is cooperative: all blocks run at once, and whoever is waited for goes on.
//
// In a cluster every block stores its values into the shared memory of all blocks, itself included: distributed shared
// memory. There are two buffers, for even and for odd steps, so slots are used again. The lane that has read a slot
// puts the sentinel back; no other lane reads it. A producer overwrites a slot only after it has received this block's
// result, which proves that the slot was read:
//   - Say that block B reads in step s what block P made of step s - 1. P stores into that slot again at the end of
//     step s + 1.
//   - For that, P must have received what all blocks, B included, made of step s, for the same sequences. This holds
//     because all blocks publish all sequences in every step, also those that have ended or not yet begun.
//   - B publishes what it made of step s after a barrier of its block, and its lanes have read and emptied all slots of
//     step s before they come to that barrier.
// That P's store comes after B's sentinel also takes fences, since all these loads and stores are relaxed: the thread
// of B that publishes releases what its block did in its shared memory, and the lane of P that receives acquires it,
// before P's next barrier and stores.
// A barrier of the cluster is needed only at the start, before anyone stores into a buffer that is not yet empty, and
// at the end, since a block's shared memory must not go away while others store into it.

#pragma once

#include "cuda/kit/dtype.cuh"
#include "cuda/kit/platform.cuh"
#include "cuda/persistent/traits.cuh"

namespace fused_rnn::cuda {

// Where the values of one sequence start, for a product; null for zeros.
struct Source {
  char* at;
  bool waits;  // whether they may still be missing
};

template <typename Traits>
class Handover {
  using T = typename Traits::T;
  using Params = typename Traits::Params;
  static constexpr int kSegments = Traits::kSegments, kChunks = Traits::kChunksInFlight;
  static constexpr int kSequences = Traits::kLaneSequences;
  static constexpr int kStride = Traits::kParts * kChunkBytes;  // between a warp's chunks, in bytes
  static constexpr uint32_t kSentinel = 0xffffffffu;
  static constexpr uint64_t kMostWait = 30'000'000'000;  // nanoseconds
  // Loads of a missing value between two looks at the clock: so many take a millisecond at most.
  static constexpr uint32_t kLooksPerClock = 1024;

 public:
  // Two neighbouring values that other blocks may wait for. Only message() makes them, so that none looks missing.
  struct Message {
    Pair<T> words;
  };
  static FUSED_RNN_DEVICE Message message(Pair<T> words) { return {without_sentinel(words)}; }

  // What a lane receives at a time: of some segments, of a few chunks that lie kParts chunks apart, and of a few
  // sequences 16 bytes each.
  struct Received {
    uint4 value[Traits::kSegmentsInFlight][kChunks][kSequences];
    char* at[kSequences];  // the slots in the first segment and chunk; null for zeros
    int chunks;            // chunks from the first on of which this lane's 16 bytes lie within the segment
  };

  // On the host, before a launch: empties the slots of a grid.
  static const char* prepare_launch(const Params& params, void* stream) {
    if (Traits::kCluster) return nullptr;
    const int64_t values = params.steps.rows * params.directions * row_values(params.hidden_size);
    return fill_bytes(global_slots(params), 0xff, values * int64_t(sizeof(T)), stream);
  }

  FUSED_RNN_DEVICE Handover(const Params& params, const SharedLayout& layout, char* shared)
      : plan_(params.plan), layout_(layout), size_(static_cast<int>(params.hidden_size)), shared_(shared) {}

  // Empties the slots of this block's shared memory, before the first step.
  FUSED_RNN_DEVICE void prepare() const {
    if constexpr (Traits::kCluster) {
      empty_buffers();
      cluster_barrier();
    }
  }
  // The same, and puts there what step 0 is to read: pair_of(sequence, unit), for all sequences and units of the group.
  template <typename PairOf>
  FUSED_RNN_DEVICE void prepare(int sequences, const PairOf& pair_of) const {
    if constexpr (Traits::kCluster) {
      empty_buffers();
      block_barrier();
      for (int index = threadIdx.x; index < sequences * size_ / 2; index += kThreads) {
        const int sequence = index / (size_ / 2), unit = index % (size_ / 2) * 2;
        store_pair(reinterpret_cast<T*>(slot(0, sequence, 0, unit)), without_sentinel(pair_of(sequence, unit)));
      }
      cluster_barrier();
    }
  }

  // Stores two neighbouring values into the array of all steps, in global memory. On a grid other blocks poll them
  // there.
  FUSED_RNN_DEVICE void publish(T* to, Message message) const { store_fresh(to, message.words); }

  // In a cluster, hands two neighbouring values of each segment to all blocks, for them to read in `step`.
  FUSED_RNN_DEVICE void publish_in_cluster(int64_t step, int sequence, int unit,
                                           const Message (&messages)[kSegments]) const {
    if constexpr (Traits::kCluster) {
      release_to_cluster();
#pragma unroll
      for (int segment = 0; segment < kSegments; ++segment) {
        char* const mine = slot(step, sequence, segment, unit);
#pragma unroll 4
        for (int rank = 0; rank < plan_.blocks; ++rank) store_shared_of(mine, rank, messages[segment].words);
      }
    }
  }

  // Returns where the values of a sequence are that `step` reads: in a cluster in this block's shared memory, on a grid
  // where in_memory() says.
  template <typename InMemory>
  FUSED_RNN_DEVICE Source source(int64_t step, int sequence, const InMemory& in_memory) const {
    if constexpr (Traits::kCluster)
      return {buffer(step, sequence), true};
    else
      return in_memory();
  }

  // Loads what is there, for the chunks from `first` on of the segments from `segment` on.
  FUSED_RNN_DEVICE void request(Received& received, const Source (&sources)[kSequences], int segment, int first,
                                int lane) const {
    const int bytes = size_ * int(sizeof(T)), from = first * kChunkBytes + lane % 4 * 16;
    received.chunks = bytes > from ? (bytes - from + kStride - 1) / kStride : 0;
#pragma unroll
    for (int n = 0; n < kSequences; ++n)
      received.at[n] = sources[n].at ? sources[n].at + segment_offset(segment) + from : nullptr;
    for_each(received, [&](int s, int j, int n, uint4& value) {
      value = received.at[n] && j < received.chunks ? load(slot_of(received, s, j, n)) : uint4{0, 0, 0, 0};
    });
  }

  // Waits until all values have come, and in a cluster empties their slots.
  FUSED_RNN_DEVICE void await(Received& received, const Source (&sources)[kSequences]) const {
    // Poll one word; polling all of them delays the stores that we wait for. When it has come, look at the others.
    for (bool again = true; again;) {
      again = false;
      for_each(received, [&](int s, int j, int n, uint4& value) {
        if (!sources[n].waits || !missing(value)) return;
        const char* from = slot_of(received, s, j, n);
        value = load(from);
        if (!again && missing(value)) value = wait_for(from);
        again = true;
      });
    }
    if constexpr (Traits::kCluster) acquire_from_cluster();
    recycle(received);
    warp_barrier();  // lanes have waited for different words, and the matrix instructions take a whole warp
  }

  // Called at the end of the kernel.
  FUSED_RNN_DEVICE void finish() const {
    if constexpr (Traits::kCluster) cluster_barrier();
  }

  // The array in which values travel on a grid, and how many of its values belong to a row and direction.
  static T* global_slots(const Params& params) {
    if constexpr (Traits::kBackward)
      return params.grad_gates;
    else
      return params.output;
  }
  static int64_t row_values(int64_t hidden_size) { return (Traits::kBackward ? Traits::Cell::kSums : 1) * hidden_size; }

  // Where a segment starts among the values of a sequence, in bytes.
  FUSED_RNN_DEVICE int segment_offset(int segment) const {
    if constexpr (Traits::kCluster) return segment * layout_.chunks * kChunkBytes;
    return Traits::kBackward ? Traits::Cell::hidden_sum(segment) * size_ * int(sizeof(T)) : 0;
  }
  FUSED_RNN_DEVICE char* slot_of(const Received& received, int s, int j, int n) const {
    return received.at[n] + segment_offset(s) + j * kStride;
  }

  // In a cluster: where the values of a sequence start that `step` reads, and where one of them is.
  FUSED_RNN_DEVICE char* buffer(int64_t step, int sequence) const {
    return shared_ + layout_.exchange + (step & 1) * layout_.exchange_size + sequence * layout_.exchange_stride;
  }
  FUSED_RNN_DEVICE char* slot(int64_t step, int sequence, int segment, int unit) const {
    return buffer(step, sequence) + segment * layout_.chunks * kChunkBytes + unit * int(sizeof(T));
  }

  FUSED_RNN_DEVICE void empty_buffers() const {
    auto* words = reinterpret_cast<uint32_t*>(shared_ + layout_.exchange);
    for (int64_t index = threadIdx.x; index < 2 * layout_.exchange_size / 4; index += kThreads)
      words[index] = kSentinel;
  }
  // Makes room for what comes after the next step.
  FUSED_RNN_DEVICE void recycle(Received& received) const {
    if constexpr (Traits::kCluster)
      for_each(received, [&](int s, int j, int n, uint4&) {
        if (received.at[n] && j < received.chunks)
          *reinterpret_cast<uint4*>(slot_of(received, s, j, n)) = {kSentinel, kSentinel, kSentinel, kSentinel};
      });
  }

  // Loads again what is missing until it has come, and gives up after kMostWait.
  static FUSED_RNN_DEVICE uint4 wait_for(const char* from) {
    uint64_t since = 0;
    for (uint32_t looks = 1;; ++looks) {
      pause();
      const uint4 value = load(from);
      if (!missing(value)) return value;
      if (looks % kLooksPerClock != 0) continue;
      const uint64_t now = nanoseconds();
      if (since == 0) since = now;
      if (now - since > kMostWait)
        give_up("a thread block has waited 30 seconds for a value of another one, which must have come long ago");
    }
  }

  // Between matrix instructions of warpgroups there is no message, which would slow them down.
  static FUSED_RNN_DEVICE void give_up(const char* why) {
    if constexpr (Traits::kSplit > 0)
      trap_without_call(why);
    else
      trap(why);
  }

  static FUSED_RNN_DEVICE uint4 load(const char* from) {
    if constexpr (Traits::kCluster)
      return load_fresh_shared(from);
    else
      return load_fresh(from);
  }
  static FUSED_RNN_DEVICE bool missing(const uint4& v) {
    return v.x == kSentinel || v.y == kSentinel || v.z == kSentinel || v.w == kSentinel;
  }
  // Replaces NaNs that would look like the sentinel by other NaNs: two of half precision in a word, or one float.
  static FUSED_RNN_DEVICE uint32_t without_sentinel(uint32_t words) { return words == kSentinel ? 0x7fff7fffu : words; }
  static FUSED_RNN_DEVICE uint2 without_sentinel(uint2 words) {
    return {words.x == kSentinel ? 0x7fffffffu : words.x, words.y == kSentinel ? 0x7fffffffu : words.y};
  }

  template <typename Body>
  static FUSED_RNN_DEVICE void for_each(Received& received, const Body& body) {
#pragma unroll
    for (int s = 0; s < Traits::kSegmentsInFlight; ++s)
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
#pragma unroll
        for (int n = 0; n < kSequences; ++n) body(s, j, n, received.value[s][j][n]);
  }

  const PersistentPlan& plan_;
  const SharedLayout layout_;
  const int size_;
  char* const shared_;
};

}  // namespace fused_rnn::cuda
