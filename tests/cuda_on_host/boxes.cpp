// Barriers in shared memory that count bytes, and copies of boxes of a tensor, for the CPU; see hopper_on_host.h. A
// block has an OS thread of its own, so what is kept for a block is thread_local.

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kit/hopper.cuh"
#include "encoded_map.h"

namespace fused_rnn::cuda {
namespace host {
namespace {

constexpr int kRow = 128, kChunk = 16, kInRow = 64;  // of a box: bytes of a row and of a chunk, and values of a row

// A barrier as PTX defines mbarrier: a phase ends when nobody is left to arrive and no bytes are left to come.
struct CountingBarrier : Place {
  static constexpr int kMost = (1 << 20) - 1;

  uint32_t address;
  int arrivals, missing;  // in each phase; still in this one
  int64_t bytes = 0;      // expected less those that came
  int parity = 0;         // of the phase that has not ended
  unsigned prepared_by;
  bool ready = false;

  std::string describe() const override {
    return "barrier_wait for " + std::to_string(missing) + " more threads and " + std::to_string(bytes) + " bytes";
  }

  void expect(int more) {
    bytes += more;
    if (more < 0 || bytes > kMost) fail("a barrier cannot expect so many bytes");
  }
  void arrive() {
    if (missing == 0) fail("more threads arrive at a barrier than it was prepared for");
    missing -= 1;
    end_phase_if_done();
  }
  void receive(int64_t arrived) {
    bytes -= arrived;
    end_phase_if_done();
  }

 private:
  void end_phase_if_done() {
    if (missing > 0) return;
    if (bytes < 0) fail("more bytes were copied than a barrier expected");
    if (bytes > 0) return;
    missing = arrivals, parity ^= 1;
    wake(*this);
  }
};

thread_local std::map<uint32_t, CountingBarrier> barriers;  // by address

// What a barrier's bytes hold while it is in order.
Barrier seal(uint32_t address) { return 0x6261'7272'0000'0000 + address; }

CountingBarrier& find(const Barrier* barrier) {
  const uint32_t address = shared_address(barrier);
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail("a barrier was not prepared");
  if (*barrier != seal(address)) fail("a barrier was overwritten");
  if (!found->second.ready && found->second.prepared_by != threadIdx.x)
    fail("a barrier was prepared, but barriers_ready was not called before others used it");
  return found->second;
}

// Which chunks of 16 bytes a thread stored without calling shared_written yet.
struct Unseen {
  static constexpr uint32_t kChunks = (1 << 18) / kChunk;  // that have an address in shared memory

  std::vector<unsigned> by = std::vector<unsigned>(kChunks);  // the thread's number and one, or zero
  std::map<unsigned, std::vector<uint32_t>> of_threads;       // numbers of chunks
  int64_t count = 0;

  void note(uint32_t chunk) {
    count += by[chunk] == 0;
    by[chunk] = threadIdx.x + 1;
    of_threads[threadIdx.x].push_back(chunk);
  }
  void clear_own() {
    for (const uint32_t chunk : of_threads[threadIdx.x])
      if (by[chunk] == threadIdx.x + 1) by[chunk] = 0, count -= 1;
    of_threads[threadIdx.x].clear();
  }
};
thread_local Unseen unseen;

// A box of a tensor, and the shared memory that it is copied from or to.
class Box {
 public:
  Box(const TensorMap& map, const void* in_shared, std::initializer_list<int> at)
      : address_(shared_address(in_shared)) {
    check_last_kernel();
    std::memcpy(&map_, &map, sizeof(map_));
    if (map_.made != EncodedMap::kMade) fail("the tensor map was not made");
    if (at.size() != map_.rank) fail("the tensor map has another number of dimensions");
    if (address_ % kRow != 0) fail("a box in shared memory must begin at a multiple of 128 bytes");
    std::copy(at.begin(), at.end(), at_);
    if (at_[0] % 8 != 0) fail("an H200 refuses a box that does not begin at a multiple of 16 bytes");
    for (int i = 1; i < map_.rank; ++i) rows_ *= map_.box[i];
    shared_ = at_shared_address(address_, bytes());
  }

  uint32_t address() const { return address_; }
  int64_t bytes() const { return int64_t(rows_) * kRow; }

  void poison() const { std::memset(shared_, 0xff, static_cast<size_t>(bytes())); }

  // Calls body(where a value is in the tensor, where in shared memory) for each value of the box. The first is null
  // outside the tensor.
  template <typename Body>
  void each_value(const Body& body) const {
    for (int row = 0; row < rows_; ++row) {
      char* const in_tensor = tensor_row(row);
      const uint32_t order = (address_ / kRow + static_cast<uint32_t>(row)) % 8;
      for (int i = 0; i < kInRow; ++i) {
        const int64_t column = int64_t(at_[0]) + i;
        const bool is_inside = in_tensor && column >= 0 && column < map_.sizes[0];
        const uint32_t chunk = static_cast<uint32_t>(i) / 8 ^ order;
        body(is_inside ? in_tensor + column * 2 : nullptr, shared_ + row * kRow + chunk * kChunk + i % 8 * 2);
      }
    }
  }

 private:
  // The address that the first value of a row of the tensor has; null outside the tensor.
  char* tensor_row(int row) const {
    char* from = map_.data;
    for (int i = 1; i < map_.rank; ++i) {
      const int64_t index = int64_t(at_[i]) + row % map_.box[i];
      if (index < 0 || index >= map_.sizes[i]) return nullptr;
      from += index * map_.strides[i - 1];
      row /= map_.box[i];
    }
    return from;
  }

  EncodedMap map_;
  int at_[EncodedMap::kMostDimensions];
  uint32_t address_;
  int rows_ = 1;
  char* shared_;
};

// A copy from shared memory that a thread started.
struct Store {
  Box box;
  bool is_done = false;

  void finish() {
    if (std::exchange(is_done, true)) return;
    box.each_value([](char* in_tensor, const char* in_shared) {
      if (in_tensor) std::memcpy(in_tensor, in_shared, 2);
    });
  }
};

// The copies that a thread started since the last batch, and batches that may not have been read yet.
struct Stores {
  std::vector<Store> started;
  std::deque<std::vector<Store>> batches;
};
thread_local std::map<unsigned, Stores> stores;  // by thread

void check_stores() {
  const Stores& mine = stores[threadIdx.x];
  if (!mine.started.empty() || !mine.batches.empty()) fail("the thread ends before its boxes have been read");
}

}  // namespace

void load_box(void* to, const TensorMap& from, Barrier* barrier, std::initializer_list<int> at) {
  const Box box(from, to, at);
  find(barrier);
  box.poison();
  later([box, barrier] {
    box.each_value([](const char* in_tensor, char* in_shared) {
      if (in_tensor)
        std::memcpy(in_shared, in_tensor, 2);
      else
        std::memset(in_shared, 0, 2);
    });
    find(barrier).receive(box.bytes());
  });
}

void store_box(const TensorMap& to, const void* from, std::initializer_list<int> at) {
  at_end(check_stores);
  Store store = {Box(to, from, at)};
  check_seen(store.box.address(), store.box.bytes());
  if (decide()) store.finish();
  stores[threadIdx.x].started.push_back(store);
}

void wait_for_boxes(int batches) {
  Stores& mine = stores[threadIdx.x];
  for (; static_cast<int>(mine.batches.size()) > batches; mine.batches.pop_front())
    for (Store& store : mine.batches.front()) store.finish();
}

void note_store(const void* to) { unseen.note(shared_address(to) / kChunk); }

void check_seen(uint32_t address, int64_t bytes) {
  if (unseen.count == 0) return;
  for (uint32_t chunk = address / kChunk; chunk * kChunk < address + bytes; ++chunk)
    if (const unsigned by = unseen.by[chunk])
      fail("thread " + std::to_string(by - 1) + " did not call shared_written after it stored what is read here");
}

}  // namespace host

void barrier_prepare(Barrier* barrier, int arrivals) {
  const uint32_t address = shared_address(barrier);
  if (address % sizeof(Barrier) != 0) host::fail("a barrier is not aligned");
  if (arrivals < 1 || arrivals > host::CountingBarrier::kMost) host::fail("a barrier cannot be for so many threads");
  const auto [made, is_new] = host::barriers.try_emplace(address);
  if (!is_new) host::fail("a barrier is prepared twice");
  made->second.address = address, made->second.arrivals = made->second.missing = arrivals;
  made->second.prepared_by = threadIdx.x;
  *barrier = host::seal(address);
}

void barriers_ready() {
  for (auto& [address, barrier] : host::barriers)
    if (barrier.prepared_by == threadIdx.x) barrier.ready = true;
}

void barrier_arrive(Barrier* barrier) { host::find(barrier).arrive(); }

void barrier_arrive_and_expect(Barrier* barrier, int bytes) {
  host::find(barrier).expect(bytes);
  host::find(barrier).arrive();
}

void barrier_wait(Barrier* barrier, int parity) {
  if (parity != 0 && parity != 1) host::fail("a parity is 0 or 1");
  const host::CountingBarrier& found = host::find(barrier);
  while (found.parity == parity) host::wait(found);
}

void boxes_started() {
  host::Stores& mine = host::stores[threadIdx.x];
  mine.batches.push_back(std::move(mine.started));
  mine.started.clear();
}

void shared_written() { host::unseen.clear_own(); }

}  // namespace fused_rnn::cuda
