// How the threads of one block wait, go on, and are found to wait for ever; see fibers.h.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "fiber.h"

namespace fused_rnn::cuda::host {

// Looks without any progress, after which a block gives up.
#ifdef FUSED_RNN_KERNELS_GIVE_UP
constexpr int kLooks = 1 << 30;
#else
constexpr int kLooks = 3;
#endif
constexpr size_t kRound = 1024;      // what the addresses of shared memory are compared with
constexpr unsigned kSkew = 11 * 16;  // how much further its first byte is in the next schedule

// A barrier. All threads that wait at it must give the same name and the same number of threads.
struct Barrier : Place {
  const char* name = nullptr;
  size_t arrived = 0, expected = 0;
  std::string describe() const override { return name; }
};

// Work that was started and is done later, and the thread that started it.
struct Work {
  unsigned thread;
  std::function<void()> run;
};

class Block;

// What the blocks of a cluster share.
struct Cluster {
  unsigned size;
  std::vector<Block*> blocks = {};
  std::atomic<unsigned> arrived = 0, generation = 0;
};

// What all blocks that run at once share.
struct Grid {
  std::vector<Block*> blocks = {};
  std::atomic<bool> failed = false;
  std::string failure = {};  // of the block that failed first

  void fail(const std::string& why) {
    if (!failing_.test_and_set()) failure = why, failed = true;
  }

 private:
  std::atomic_flag failing_ = {};
};

class Block {
 public:
  Block(Grid& grid, Cluster& cluster, unsigned index, const Kernel& kernel, unsigned schedule)
      : grid_(grid),
        peers_(cluster),
        index_(index),
        kernel_(kernel),
        schedule_(schedule),
        random_(schedule_ * 1000 + index),
        skew_(schedule_ * kSkew % kRound),
        memory_(allocate(skew_ + static_cast<size_t>(kernel.shared_bytes)), std::free),
        fibers_(static_cast<size_t>(kernel.threads)),
        lanes_(fibers_.size()),
        may_touch_memory_(fibers_.size(), !kernel.early),
        warps_((fibers_.size() + kWarp - 1) / kWarp),
        warpgroups_((fibers_.size() + kWarpgroup - 1) / kWarpgroup),
        order_(fibers_.size()) {
    std::iota(order_.begin(), order_.end(), 0u);
    std::shuffle(order_.begin(), order_.end(), random_);
#ifdef __SANITIZE_ADDRESS__
    ASAN_POISON_MEMORY_REGION(memory_.get(), skew_);
#endif
  }

  // The block that runs on the calling OS thread.
  static Block& current() { return *current_; }

  // Runs all threads, on the calling OS thread.
  void run() {
    current_ = this;
    blockIdx.x = index_, blockDim.x = static_cast<unsigned>(fibers_.size());
    // NaN in every type: nothing may be read before it is written.
    std::memset(shared(), 0xff, static_cast<size_t>(kernel_.shared_bytes));
    const Stacks stacks(fibers_.size());
    for (size_t i = 0; i < fibers_.size(); ++i) fibers_[i].prepare(stacks.at(i), enter);
    ready_ = order_;
    unfinished_ = fibers_.size();
    operating_system_.switch_to(next());
    has_ended_ = true;
    note_progress();
  }

  [[noreturn]] void fail(const std::string& why) {
    grid_.fail("block " + std::to_string(index_) + ", thread " + std::to_string(threadIdx.x) + ": " + why);
    this_fiber().switch_to(operating_system_);
    std::abort();  // nobody goes on with a fiber that failed
  }

  void meet_block(const char* name) {
    meet(block_, name, fibers_.size(), [] {});
  }
  void meet_warp(const char* name, void (*last)(Lane* lanes)) { meet_neighbours(warps_, name, kWarp, last); }
  void meet_warpgroup(const char* name, void (*last)(Lane* lanes)) {
    if (threadIdx.x / kWarpgroup >= fibers_.size() / kWarpgroup) fail("the thread is not in a whole warpgroup");
    meet_neighbours(warpgroups_, name, kWarpgroup, last);
  }
  void meet_group(const char* name, int number, int threads) {
    if (number < 1 || number >= static_cast<int>(groups_.size())) fail("there is no barrier of this number");
    if (threads < 1 || threads % static_cast<int>(kWarp) != 0 || threads > static_cast<int>(fibers_.size()))
      fail("a barrier is for whole warps of the block");
    meet(groups_[static_cast<size_t>(number)], name, static_cast<size_t>(threads), [] {});
  }
  // The last thread of each block goes on to meet those of the other blocks.
  void meet_cluster(const char* name) {
    meet(cluster_, name, fibers_.size(), [this] {
      const unsigned generation = peers_.generation;
      if (++peers_.arrived == peers_.size) {
        peers_.arrived = 0;
        peers_.generation += 1;
        note_progress();
      } else {
        while (peers_.generation == generation) pause();
      }
    });
  }

  void pause() {
    paused_.push_back(threadIdx.x);
    go_on();
  }

  void note_progress() { progress_ += 1; }

  void wait_for_last_kernel() { may_touch_memory_[threadIdx.x] = true; }
  void check_last_kernel() {
    if (!may_touch_memory_[threadIdx.x]) fail("wait_for_last_kernel was not called in a kernel that is launched early");
  }

  void wait(const Place& place) {
    note_progress();
    this_fiber().waits_at = &place;
    go_on();
  }
  void wake(const Place& place) {
    note_progress();
    for (const unsigned thread : order_)
      if (fibers_[thread].waits_at == &place) {
        fibers_[thread].waits_at = nullptr;
        ready_.push_back(thread);
      }
  }

  bool decide() { return schedule_ == 0 ? false : schedule_ == 1 || random_() % 2 == 0; }
  void later(std::function<void()> work) {
    if (decide()) return work();
    works_.push_back({threadIdx.x, std::move(work)});
  }
  void at_end(void (*check)()) {
    if (std::find(checks_at_end_.begin(), checks_at_end_.end(), check) == checks_at_end_.end())
      checks_at_end_.push_back(check);
  }

  Lane& this_lane() { return lanes_[threadIdx.x]; }
  char* shared() { return memory_.get() + skew_; }
  uint32_t shared_address(const void* in_shared) {
    const int64_t offset = static_cast<const char*>(in_shared) - shared();
    if (offset < 0 || offset >= kernel_.shared_bytes) fail("the address is not in the block's shared memory");
    return static_cast<uint32_t>(kRound + skew_ + static_cast<size_t>(offset));
  }
  char* at_shared_address(uint32_t address, int64_t bytes) {
    const int64_t offset = int64_t(address) - int64_t(kRound + skew_);
    if (offset < 0 || offset + bytes > kernel_.shared_bytes) fail("the block's shared memory does not reach so far");
    return shared() + offset;
  }
  int rank() const { return static_cast<int>(index_ % peers_.size); }

  char* shared_of(const void* mine, int rank) {
    const int64_t offset = static_cast<const char*>(mine) - shared();
    if (offset < 0 || offset >= kernel_.shared_bytes)
      fail("shared_of: the address is not in the block's shared memory");
    if (rank < 0 || rank >= static_cast<int>(peers_.size)) fail("shared_of: the cluster has no such block");
    Block& other = *peers_.blocks[static_cast<size_t>(rank)];
    if (other.has_ended_) fail("shared_of: the other block has ended, and its shared memory with it");
    return other.shared() + offset;
  }

 private:
  static void enter() {
    Block& block = current();
    block.this_fiber().arrive(&block.operating_system_);
    block.kernel_.call(block.kernel_.params);
    block.check_last_kernel();
    for (const auto check : block.checks_at_end_) check();
    block.unfinished_ -= 1;
    block.note_progress();
    block.go_on();
  }

  Fiber& this_fiber() { return fibers_[threadIdx.x]; }

  // Lets the `size` neighbouring threads meet to which the calling one belongs.
  void meet_neighbours(std::vector<Barrier>& barriers, const char* name, size_t size, void (*last)(Lane* lanes)) {
    const size_t first = threadIdx.x / size * size;
    meet(barriers[first / size], name, std::min(size, fibers_.size() - first), [&] {
      if (last) last(&lanes_[first]);
    });
  }

  // Waits until `count` threads have come here; the last one does `work` before any goes on.
  template <typename Work>
  void meet(Barrier& barrier, const char* name, size_t count, const Work& work) {
    note_progress();
    if (barrier.arrived == 0) barrier.name = name, barrier.expected = count;
    if (std::strcmp(barrier.name, name) != 0 || barrier.expected != count)
      fail(std::string("meets threads that wait at another barrier: ") + barrier.name + ", not " + name);
    this_fiber().waits_at = &barrier;
    if (++barrier.arrived < count) return go_on();
    work();
    barrier.arrived = 0;
    for (const unsigned thread : order_)
      if (fibers_[thread].waits_at == &barrier) {
        fibers_[thread].waits_at = nullptr;
        if (thread != threadIdx.x) ready_.push_back(thread);
      }
  }

  void go_on() {
    Fiber &from = this_fiber(), &to = next();
    if (&from != &to) from.switch_to(to);
  }

  // The fiber to go on with. That which was let go last is first, so that a warp runs ahead as far as it can.
  Fiber& next() {
    while (ready_.empty())
      if (!look_again()) return operating_system_;
    threadIdx.x = ready_.back();
    ready_.pop_back();
    return this_fiber();
  }

  // Lets paused threads look again for what they wait for; returns false if the block is at its end.
  bool look_again() {
    if (grid_.failed) return false;
    if (unfinished_ == 0) {
      if (!works_.empty()) grid_.fail("block " + std::to_string(index_) + " ends before work that it started");
      return false;
    }
    if (!works_.empty()) {
      do_one_work();
      return !grid_.failed;
    }
    if (paused_.empty()) {
      grid_.fail("block " + std::to_string(index_) + " waits for threads that do not come: " + who_waits());
      return false;
    }
    uint64_t total = 0;
    std::vector<const Block*> running;
    for (const Block* block : grid_.blocks) {
      if (!block->has_ended_) running.push_back(block);  // before its progress is read: an end is progress too
      total += block->progress_;
    }
    // Once all have looked a few times since anyone did anything, nothing will ever change. Once is not enough: a
    // thread may pause between seeing what it waits for and going on.
    looks_ = total == looked_at_ ? looks_ + 1 : 0;
    looked_at_ = total;
    if (looks_ >= kLooks) settled_at_ = total;
    if (std::all_of(running.begin(), running.end(), [&](const Block* block) { return block->settled_at_ == total; }))
      grid_.fail("block " + std::to_string(index_) + " waits for what no block will write: " + who_waits());
    std::this_thread::yield();
    std::swap(ready_, paused_);
    return true;
  }

  // Does any of the works that wait, as if its thread did it, for messages.
  void do_one_work() {
    std::swap(works_[random_() % works_.size()], works_.back());
    const Work work = std::move(works_.back());
    works_.pop_back();
    const unsigned thread = std::exchange(threadIdx.x, work.thread);
    work.run();
    threadIdx.x = thread;
    note_progress();
  }

  std::string who_waits() const {
    std::map<std::string, int> counts;
    for (const Fiber& fiber : fibers_)
      if (fiber.waits_at) counts[fiber.waits_at->describe()] += 1;
    std::string text = "of " + std::to_string(unfinished_) + " threads";
    for (const auto& [name, count] : counts) text += ", " + std::to_string(count) + " are at a " + name;
    return text;
  }

  // Memory that begins at a multiple of kRound.
  static char* allocate(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kRound, bytes) != 0) std::abort();
    return static_cast<char*>(memory);
  }

  static inline thread_local Block* current_ = nullptr;

  Grid& grid_;
  Cluster& peers_;
  const unsigned index_;
  const Kernel& kernel_;
  const unsigned schedule_;
  std::mt19937 random_;
  const size_t skew_;  // of shared memory, which need not begin at a multiple of kRound
  const std::unique_ptr<char, decltype(&std::free)> memory_;
  std::vector<Fiber> fibers_;
  std::vector<Lane> lanes_;
  std::vector<bool> may_touch_memory_;  // of each thread
  std::vector<Barrier> warps_, warpgroups_;
  Barrier block_ = {}, cluster_ = {};
  std::array<Barrier, 16> groups_ = {};
  std::vector<Work> works_ = {};
  std::vector<void (*)()> checks_at_end_ = {};
  std::vector<unsigned> order_, ready_ = {}, paused_ = {};  // threads
  size_t unfinished_ = 0;
  Fiber operating_system_ = {};
  uint64_t looked_at_ = 0;  // the progress of all blocks at the last look
  int looks_ = 0;           // at that progress
  std::atomic<uint64_t> progress_ = 1, settled_at_ = 0;
  std::atomic<bool> has_ended_ = false;
};

}  // namespace fused_rnn::cuda::host
