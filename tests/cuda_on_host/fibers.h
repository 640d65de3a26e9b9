// Runs the thread blocks of a CUDA kernel on a CPU: one OS thread for each block, one fiber for each CUDA thread. A
// fiber runs until it waits at a barrier, or pauses in a loop that waits for another block; a seed decides which one is
// next, so that runs differ in who is ahead of whom. A kernel that cannot go on is ended, with the reason.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace fused_rnn::cuda {

struct Index {
  unsigned x;
};
inline thread_local constinit Index threadIdx = {}, blockIdx = {}, blockDim = {};

namespace host {

constexpr unsigned kWarp = 32, kWarpgroup = 128;

// Runs `blocks` times `threads` calls of kernel(params), each block with `shared_bytes` of shared memory, to the byte,
// for AddressSanitizer to see who goes beyond. Blocks run at once only where CUDA promises it: those of a cluster, or
// all if `cooperative`. Threads of a kernel that is launched `early` must wait for the last one. Returns null, or what
// went wrong, in memory that lives until the calling thread's next call.
struct Kernel {
  void (*call)(const void* params);
  const void* params;
  int64_t blocks, threads, shared_bytes, cluster;
  bool cooperative, early;
};
const char* run(const Kernel& kernel);

// Chooses among the schedules of the runs that follow.
void set_schedule(unsigned seed);

// How many blocks find room at once: those of a cluster, or of a cooperative launch. set_room() changes it.
int64_t room();
void set_room(int64_t blocks);
// Returns the most blocks of a launch, of clusters or cooperative, since the last call.
int64_t most_blocks_launched();

// Tests plant numbered faults into a copy of the kernels, and switch one of them on; none is on at first.
void set_fault(int number);
bool has_fault(int number);

// What follows is for the threads of a kernel.

// The shared memory of this block; the number of the block in its cluster; and the address in the shared memory of the
// block `rank` that corresponds to `mine` in this block's.
char* shared_memory();
int this_rank();
void* shared_of(const void* mine, int rank);

// Barriers, with a name for messages. The thread of a warp that comes last calls last(of): null for nothing.
void meet_block(const char* name);
void meet_cluster(const char* name);
void meet_warp(const char* name, void (*last)(struct Lane* lanes) = nullptr);
void meet_warpgroup(const char* name, void (*last)(struct Lane* lanes) = nullptr);

// A barrier of any `threads` threads of the block, one of those numbered 1 to 15.
void meet_group(const char* name, int number, int threads);

// Where threads wait for something other than one another.
struct Place {
  virtual ~Place() = default;
  // Says what threads wait for, for messages.
  virtual std::string describe() const = 0;
};
void wait(const Place& place);  // until someone calls wake
void wake(const Place& place);

// Does work at once, or when no thread can go on without it: what the GPU does beside its threads. It is an error if
// all threads end before.
void later(std::function<void()> work);

// Whether to do now what could also be done later.
bool decide();

// Calls `check` in each thread of this block that ends from now on.
void at_end(void (*check)());

// The address in shared memory as a GPU has it, which has the alignment of the true one up to 1024 bytes; and back,
// where `bytes` bytes must be in shared memory. Whether it starts at a multiple of more than 16 is up to the schedule.
uint32_t shared_address(const void* in_shared);
char* at_shared_address(uint32_t address, int64_t bytes);

// Notes that the last kernel has ended; and checks that this thread may touch global memory.
void wait_for_last_kernel();
void check_last_kernel();

// Lets all other threads go on.
void pause();

// Returns the time of the kernels' clock. It stands still, unless this is built to let kernels give up by themselves:
// then it is ten seconds later at each call.
uint64_t nanoseconds();

// Says that another block may now have what it waits for.
void note_progress();

// Ends the kernel.
[[noreturn]] void fail(const std::string& why);

// What each lane brings to an instruction of the whole warp.
struct Lane {
  uint32_t a[4], b[2];
  float* sum;
  const void* more = nullptr;
};
Lane& this_lane();

}  // namespace host
}  // namespace fused_rnn::cuda
