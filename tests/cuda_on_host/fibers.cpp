// How threads wait, go on, and are found to wait for ever; see fibers.h.

#include "fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
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
#include <sanitizer/common_interface_defs.h>
#endif

namespace fused_rnn::cuda::host {
namespace {

constexpr int64_t kMostShared = 227 * 1024;  // of a block of an H100
constexpr size_t kStack = 64 * 1024;         // of a fiber
// Looks without any progress, after which a block gives up; and what the clock of the kernels moves on at each reading,
// which stands still where the kernels' own limit must not come first.
#ifdef FUSED_RNN_KERNELS_GIVE_UP
constexpr int kLooks = 1 << 30;
constexpr uint64_t kTick = 10'000'000'000;
#else
constexpr int kLooks = 3;
constexpr uint64_t kTick = 0;
#endif

std::atomic<unsigned> schedule = 0;
std::atomic<int64_t> most_blocks = 1 << 30, most_launched = 0;
std::atomic<uint64_t> clock_reads = 0;

// A barrier. All threads that wait at it must give the same name and the same number of threads.
struct Barrier {
  const char* name = nullptr;
  size_t arrived = 0, expected = 0;
};

// How far one CUDA thread has come.
class Fiber {
 public:
  void prepare(char* stack, void (*entry)()) {
    stack_ = stack, bytes_ = kStack, started_ = false;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = kStack;
    makecontext(&context_, entry, 0);
  }

  // Goes on with `to` until something goes on with this one. setjmp, unlike swapcontext, asks nothing of the operating
  // system, which would take most of a run's time.
  void switch_to(Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.bytes_);
#endif
    if (_setjmp(jump_) == 0) {
      if (to.started_) _longjmp(to.jump_, 1);
      to.started_ = true;
      setcontext(&to.context_);
    }
    arrive(nullptr);
  }

  // Must be called on arrival. The first one comes from `origin`, whose stack is not known before.
  void arrive([[maybe_unused]] Fiber* origin) {
#ifdef __SANITIZE_ADDRESS__
    const void* stack = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &stack, &bytes);
    if (origin && !origin->stack_) origin->stack_ = static_cast<const char*>(stack), origin->bytes_ = bytes;
#endif
  }

  const Barrier* waits_at = nullptr;

 private:
  jmp_buf jump_;
  ucontext_t context_;
  bool started_ = true;
  [[maybe_unused]] const char* stack_ = nullptr;
  [[maybe_unused]] size_t bytes_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;
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
  Block(Grid& grid, Cluster& cluster, unsigned index, const Kernel& kernel)
      : grid_(grid),
        peers_(cluster),
        index_(index),
        kernel_(kernel),
        shared_(static_cast<char*>(std::aligned_alloc(16, static_cast<size_t>(kernel.shared_bytes))), std::free),
        fibers_(static_cast<size_t>(kernel.threads)),
        lanes_(fibers_.size()),
        warps_((fibers_.size() + kWarp - 1) / kWarp),
        order_(fibers_.size()) {
    std::iota(order_.begin(), order_.end(), 0u);
    std::shuffle(order_.begin(), order_.end(), std::mt19937(schedule * 1000 + index));
  }

  // The block that runs on the calling OS thread.
  static Block& current() { return *current_; }

  // Runs all threads, on the calling OS thread.
  void run() {
    current_ = this;
    blockIdx.x = index_, blockDim.x = static_cast<unsigned>(fibers_.size());
    // NaN in every type: nothing may be read before it is written.
    std::memset(shared_.get(), 0xff, static_cast<size_t>(kernel_.shared_bytes));
    const std::unique_ptr<char[]> stacks(new char[fibers_.size() * kStack]);
    for (size_t i = 0; i < fibers_.size(); ++i) fibers_[i].prepare(stacks.get() + i * kStack, enter);
    ready_ = order_;
    unfinished_ = fibers_.size();
    operating_system_.switch_to(next());
    has_ended_ = true;
    note_progress();
  }

  [[noreturn]] void fail(const char* why) {
    grid_.fail("block " + std::to_string(index_) + ", thread " + std::to_string(threadIdx.x) + ": " + why);
    this_fiber().switch_to(operating_system_);
    std::abort();  // nobody goes on with a fiber that failed
  }

  void meet_block(const char* name) {
    meet(block_, name, fibers_.size(), [] {});
  }
  void meet_warp(const char* name, void (*last)(Lane* lanes)) {
    const size_t first = threadIdx.x / kWarp * kWarp;
    meet(warps_[first / kWarp], name, std::min<size_t>(kWarp, fibers_.size() - first), [&] {
      if (last) last(&lanes_[first]);
    });
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

  Lane& this_lane() { return lanes_[threadIdx.x]; }
  char* shared() { return shared_.get(); }
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
    block.unfinished_ -= 1;
    block.note_progress();
    block.go_on();
  }

  Fiber& this_fiber() { return fibers_[threadIdx.x]; }

  // Waits until `count` threads have come here; the last one does `work` before any goes on.
  template <typename Work>
  void meet(Barrier& barrier, const char* name, size_t count, const Work& work) {
    note_progress();
    if (barrier.arrived == 0) barrier.name = name, barrier.expected = count;
    if (std::strcmp(barrier.name, name) != 0 || barrier.expected != count)
      fail((std::string("meets threads that wait at another barrier: ") + barrier.name + ", not " + name).c_str());
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
    if (unfinished_ == 0 || grid_.failed) return false;
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

  std::string who_waits() const {
    std::map<std::string, int> counts;
    for (const Fiber& fiber : fibers_)
      if (fiber.waits_at) counts[fiber.waits_at->name] += 1;
    std::string text = "of " + std::to_string(unfinished_) + " threads";
    for (const auto& [name, count] : counts) text += ", " + std::to_string(count) + " are at a " + name;
    return text;
  }

  static inline thread_local Block* current_ = nullptr;

  Grid& grid_;
  Cluster& peers_;
  const unsigned index_;
  const Kernel& kernel_;
  const std::unique_ptr<char, decltype(&std::free)> shared_;
  std::vector<Fiber> fibers_;
  std::vector<Lane> lanes_;
  std::vector<Barrier> warps_;
  Barrier block_ = {}, cluster_ = {};
  std::vector<unsigned> order_, ready_ = {}, paused_ = {};  // threads
  size_t unfinished_ = 0;
  Fiber operating_system_ = {};
  uint64_t looked_at_ = 0;  // the progress of all blocks at the last look
  int looks_ = 0;           // at that progress
  std::atomic<uint64_t> progress_ = 1, settled_at_ = 0;
  std::atomic<bool> has_ended_ = false;
};

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
      blocks.push_back(std::make_unique<Block>(grid, *clusters.back(), static_cast<unsigned>(index), kernel));
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
void pause() { Block::current().pause(); }
void note_progress() { Block::current().note_progress(); }
void fail(const char* why) { Block::current().fail(why); }
Lane& this_lane() { return Block::current().this_lane(); }

}  // namespace fused_rnn::cuda::host
