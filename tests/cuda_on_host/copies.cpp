// Copies of chunks to shared memory beside the threads (cp.async), and loads of matrices by a warp (ldmatrix), for the
// CPU. A chunk arrives at once or when its thread waits for it, as the schedule decides; until then there is NaN, so
// that a kernel that does not wait reads NaN. A block has an OS thread of its own, so what is kept for a block is
// thread_local.

#include <cstring>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "cuda_on_host.h"

namespace fused_rnn::cuda {
namespace host {
namespace {

constexpr int kChunk = 16;

struct Copy {
  char* to;
  const void* from;  // null for zeros
  void finish() const { from ? std::memcpy(to, from, kChunk) : std::memset(to, 0, kChunk); }
};

// The copies that a thread started since the last batch, and batches that may not be there yet.
struct Copies {
  std::vector<Copy> started;
  std::deque<std::vector<Copy>> batches;
};
thread_local std::map<unsigned, Copies> copies;  // by thread

void check_copies() {
  const Copies& mine = copies[threadIdx.x];
  bool is_done = mine.started.empty();
  for (const auto& batch : mine.batches) is_done = is_done && batch.empty();
  if (!is_done) fail("the thread ends before its copies are done");
  copies.erase(threadIdx.x);
}

}  // namespace

void start_copy(void* to, const void* from, bool exists) {
  check_last_kernel();
  at_end(check_copies);
  const uint32_t address = shared_address(to);
  if (address % kChunk != 0 || (exists && reinterpret_cast<uintptr_t>(from) % kChunk != 0))
    fail("a chunk that is copied is not aligned");
  const Copy copy = {at_shared_address(address, kChunk), exists ? from : nullptr};
  std::memset(copy.to, 0xff, kChunk);
  if (decide())
    copy.finish();
  else
    copies[threadIdx.x].started.push_back(copy);
}

void wait_for_copies(int batches) {
  Copies& mine = copies[threadIdx.x];
  for (; static_cast<int>(mine.batches.size()) > batches; mine.batches.pop_front())
    for (const Copy& copy : mine.batches.front()) copy.finish();
}

uint4 load_matrices(const void* row, bool transposed) {
  if (shared_address(row) % kChunk != 0) fail("load_matrices: the address is not aligned");
  at_shared_address(shared_address(row), kChunk);
  this_lane() = {{}, {}, nullptr, row};
  const auto plain = [](Lane* lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix)
        std::memcpy(&lanes[lane].a[matrix], static_cast<const char*>(lanes[8 * matrix + lane / 4].more) + lane % 4 * 4,
                    4);
  };
  const auto other = [](Lane* lanes) {
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix)
        for (int half = 0; half < 2; ++half)
          std::memcpy(reinterpret_cast<char*>(&lanes[lane].a[matrix]) + 2 * half,
                      static_cast<const char*>(lanes[8 * matrix + lane % 4 * 2 + half].more) + lane / 4 * 2, 2);
  };
  transposed ? meet_warp("load_matrices, transposed", other) : meet_warp("load_matrices", plain);
  const Lane& mine = this_lane();
  return {mine.a[0], mine.a[1], mine.a[2], mine.a[3]};
}

}  // namespace host

void copies_started() {
  host::Copies& mine = host::copies[threadIdx.x];
  mine.batches.push_back(std::move(mine.started));
  mine.started.clear();
}

}  // namespace fused_rnn::cuda
