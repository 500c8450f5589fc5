// One fiber per CUDA thread, one block at a time: barriers, warp operations, and what the kernel sees of its place in
// the grid.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "context.h"

namespace cuda_on_cpu {

constexpr unsigned WARP_SIZE = 32;
constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr unsigned MOST_THREADS = 1024;       // of a block
constexpr unsigned MOST_SHARED = 227 * 1024;  // bytes of a block, static and dynamic together
constexpr unsigned BARRIERS = 16;             // bar.sync 0 to 15
constexpr unsigned WORDS_PUBLISHED = 24;      // by one lane in one warp operation; mma.sync of float64 needs the most

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
};

// Where in the kernel something happens: a line of the PTX, or file and line of the source.
struct Site {
  const char* file = nullptr;
  int line = 0;
};

enum class State { ready, at_barrier, in_warp_operation, finished };

struct AsyncCopy {
  void* to;
  const void* from;
  unsigned bytes, from_bytes;  // the rest is filled with zeros
  int group;
  Site site;
};

struct Thread {
  Context context;
  char* stack = nullptr;
  Index3 index;
  unsigned linear = 0, lane = 0, warp = 0;
  State state = State::ready;
  Site site;               // of the operation it waits in
  const char* doing = "";  // name of that operation
  unsigned barrier = 0, barrier_count = 0;
  // Lamport clocks: a barrier leaves all who meet at it with the same time, after that of each. For the race detector.
  unsigned block_time = 0, warp_time = 0;
  unsigned mask = 0;  // lanes that its warp operation waits for
  // A lane may publish for its next operation while others still read the last one: hence two sets of words.
  uint32_t published[2][WORDS_PUBLISHED];
  unsigned operations = 0;  // warp operations entered
  unsigned readable = 0;    // set that the others of the group may read
  std::vector<AsyncCopy> copies;
  int copy_group = 0;
};

enum class Order { ascending, descending, random };

struct Schedule {
  Order order = Order::ascending;
  uint64_t seed = 0;  // of Order::random
};

struct Launch {
  Index3 grid, block, block_index;
  std::function<void()> kernel;
  unsigned shared_bytes = 0;
  Schedule schedule;
  std::function<void()> block_starts, block_ends;  // called in the scheduler; may be empty
};

// The state of the launch in progress; there is one at a time.
extern Launch launch_state;
extern Thread* current_thread;
extern std::vector<Thread> block_threads;
extern char* block_shared_memory;  // exactly Launch::shared_bytes bytes, fresh and poisoned for each block

// Runs all blocks. Returns false after an error in the kernel, which last_error() then describes.
bool run(Launch launch);
const char* last_error();

// Ends the launch with an error at `site` of the current thread.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// bar.sync: waits until `count` threads (0: all of the block) have arrived at barrier `id`.
void block_barrier(unsigned id, unsigned count, Site site);

// Publishes `words` to the lanes of `mask`, and waits until all of them are in the same operation.
// It orders no memory accesses (CUDA gives none for shuffles and votes).
void meet(unsigned mask, const uint32_t* words, unsigned count, const char* operation, Site site);
// What `lane` published in the meeting that the current thread has just left.
uint32_t published_by(unsigned lane, unsigned word = 0);
// bar.warp.sync: a meeting that orders memory accesses.
void warp_barrier(unsigned mask, Site site);

// cp.async: the data land as late as they may, when the copying thread waits for them.
void start_copy(void* to, const void* from, unsigned bytes, unsigned from_bytes, Site site);
void commit_copies();
void wait_for_copies(int groups_left_open);
// Called for each copy that lands (by the memory checker); may be empty.
extern std::function<void(const AsyncCopy&)> copy_lands;

}  // namespace cuda_on_cpu
