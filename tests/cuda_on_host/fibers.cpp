// Runs kernels, block by block; see fibers.h.

#include "fibers.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "block.h"

namespace fused_rnn::cuda::host {
namespace {

constexpr int64_t kMostShared = 227 * 1024;  // of a block of an H100

// What the clock of the kernels moves on at each reading; it stands still where the kernels' own limit must not come
// first.
#ifdef FUSED_RNN_KERNELS_GIVE_UP
constexpr uint64_t kTick = 10'000'000'000;
#else
constexpr uint64_t kTick = 0;
#endif

std::atomic<unsigned> schedule = 0;
std::atomic<int64_t> most_blocks = 1 << 30, most_launched = 0;
std::atomic<uint64_t> clock_reads = 0;
std::atomic<int> fault = -1;

}  // namespace

const char* run(const Kernel& kernel) {
  if (kernel.blocks < 1 || kernel.threads < 1 || kernel.threads > 1024 || kernel.shared_bytes < 0 ||
      kernel.shared_bytes > kMostShared || kernel.cluster < 1 || kernel.cluster > 16 ||
      kernel.blocks % kernel.cluster != 0)
    return "CUDA refuses to launch this many blocks or threads, or this much shared memory";
  if (kernel.cooperative || kernel.cluster > 1) most_launched = std::max<int64_t>(most_launched, kernel.blocks);
  static thread_local std::string failure;
  const int64_t at_once = kernel.cooperative ? kernel.blocks : kernel.cluster;
  for (int64_t first = 0; first < kernel.blocks; first += at_once) {
    Grid grid;
    std::vector<std::unique_ptr<Cluster>> clusters;
    std::vector<std::unique_ptr<Block>> blocks;
    for (int64_t index = first; index < first + at_once; ++index) {
      if (index % kernel.cluster == 0) clusters.emplace_back(new Cluster{static_cast<unsigned>(kernel.cluster)});
      blocks.push_back(std::make_unique<Block>(grid, *clusters.back(), static_cast<unsigned>(index), kernel, schedule));
      clusters.back()->blocks.push_back(blocks.back().get());
      grid.blocks.push_back(blocks.back().get());
    }
    std::vector<std::thread> threads;
    for (const auto& block : blocks) threads.emplace_back(&Block::run, block.get());
    for (std::thread& thread : threads) thread.join();
    failure = grid.failure;
    if (grid.failed) return failure.c_str();
  }
  return nullptr;
}

void set_schedule(unsigned seed) { schedule = seed; }
void set_fault(int number) { fault = number; }
bool has_fault(int number) { return fault == number; }

int64_t room() { return most_blocks; }
void set_room(int64_t blocks) { most_blocks = blocks; }

int64_t most_blocks_launched() { return most_launched.exchange(0); }

uint64_t nanoseconds() { return 1 + ++clock_reads * kTick; }

char* shared_memory() { return Block::current().shared(); }
int this_rank() { return Block::current().rank(); }
void* shared_of(const void* mine, int rank) { return Block::current().shared_of(mine, rank); }
void meet_block(const char* name) { Block::current().meet_block(name); }
void meet_cluster(const char* name) { Block::current().meet_cluster(name); }
void meet_warp(const char* name, void (*last)(Lane* lanes)) { Block::current().meet_warp(name, last); }
void meet_warpgroup(const char* name, void (*last)(Lane* lanes)) { Block::current().meet_warpgroup(name, last); }
void meet_group(const char* name, int number, int threads) { Block::current().meet_group(name, number, threads); }
void wait(const Place& place) { Block::current().wait(place); }
void wake(const Place& place) { Block::current().wake(place); }
bool decide() { return Block::current().decide(); }
void later(std::function<void()> work) { Block::current().later(std::move(work)); }
void at_end(void (*check)()) { Block::current().at_end(check); }
uint32_t shared_address(const void* in_shared) { return Block::current().shared_address(in_shared); }
char* at_shared_address(uint32_t address, int64_t bytes) { return Block::current().at_shared_address(address, bytes); }
void wait_for_last_kernel() { Block::current().wait_for_last_kernel(); }
void check_last_kernel() { Block::current().check_last_kernel(); }
void pause() { Block::current().pause(); }
void note_progress() { Block::current().note_progress(); }
void fail(const std::string& why) { Block::current().fail(why); }
Lane& this_lane() { return Block::current().this_lane(); }

}  // namespace fused_rnn::cuda::host
