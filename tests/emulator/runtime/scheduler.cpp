#include "scheduler.h"

#include <algorithm>
#include <cstring>

#if defined(__SANITIZE_THREAD__)
#include <pthread.h>
#endif

namespace cuda_on_cpu {

Context scheduler;
std::string launch_error;
bool launch_failed = false;
char* tokens = nullptr;

namespace {

constexpr unsigned char POISON = 0xff;  // reads as NaN or -1

CUDA_ON_CPU_UNSANITIZED void to_thread(Thread& thread) {
  current_thread = &thread;
  switch_context(scheduler, thread.context);
}

// Numbers for the random schedule: the generator must not be seen by a sanitizer as memory shared between threads.
struct Shuffler {
  uint64_t state;
  CUDA_ON_CPU_UNSANITIZED void shuffle(std::vector<unsigned>& items) {
    for (size_t i = items.size(); i > 1; --i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      const size_t j = (state >> 33) % i;
      const unsigned held = items[i - 1];
      items[i - 1] = items[j];
      items[j] = held;
    }
  }
};

std::vector<unsigned> in_order(size_t count, Order order, Shuffler& shuffler) {
  std::vector<unsigned> items(count);
  for (size_t i = 0; i < count; ++i) items[i] = static_cast<unsigned>(i);
  if (order == Order::descending) std::reverse(items.begin(), items.end());
  if (order == Order::random) shuffler.shuffle(items);
  return items;
}

std::string describe(const Thread& thread) {
  char text[256];
  const char* file = thread.site.file ? thread.site.file : "";
  snprintf(text, sizeof text, "thread %u %s %s%sline %d", thread.linear,
           thread.state == State::finished ? "has exited; it last waited at" : thread.doing, file, *file ? " " : "",
           thread.site.line);
  return text;
}

// An error that the scheduler finds, not a thread.
CUDA_ON_CPU_UNSANITIZED void block_error(const char* what, const Thread& first, const Thread* second = nullptr) {
  current_thread = nullptr;
  launch_failed = true;
  const Index3 b = launch_state.block_index;
  launch_error = std::string(what) + " in block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
                 std::to_string(b.z) + "): " + describe(first);
  if (second) launch_error += "; " + describe(*second);
}

// Lets the lanes of a mask go on once all of them have arrived.
CUDA_ON_CPU_UNSANITIZED bool release_warp(unsigned warp) {
  const unsigned first = warp * WARP_SIZE;
  const unsigned count = std::min<unsigned>(WARP_SIZE, block_threads.size() - first);
  bool released = false;
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block_threads[first + i];
    if (thread.state != State::in_warp_operation) continue;
    bool complete = true;
    for (unsigned j = 0; j < WARP_SIZE && complete; ++j) {
      if (!(thread.mask >> j & 1)) continue;
      if (j >= count) {
        block_error("the mask of a warp operation names lanes beyond the block", thread);
        return false;
      }
      const Thread& other = block_threads[first + j];
      if (other.state == State::finished) {
        block_error("the mask of a warp operation names a lane that has exited", thread, &other);
        return false;
      }
      complete = other.state == State::in_warp_operation;
      if (complete && (other.mask != thread.mask || strcmp(other.doing, thread.doing) != 0)) {
        block_error("lanes of one mask are in different warp operations", thread, &other);
        return false;
      }
    }
    if (!complete) continue;
    released = true;
    for (unsigned j = 0; j < count; ++j) {
      if (!(thread.mask >> j & 1)) continue;
      Thread& other = block_threads[first + j];
      other.state = State::ready;
      other.readable = other.operations++ & 1;
    }
  }
  return released;
}

bool same_place(Site a, Site b) { return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)); }

// Lets threads pass the block barriers that are complete. Called only when no thread can run.
CUDA_ON_CPU_UNSANITIZED bool release_barriers() {
  bool released = false;
  for (unsigned id = 0; id < BARRIERS; ++id) {
    unsigned waiting = 0, latest = 0;
    const Thread *first = nullptr, *elsewhere = nullptr, *exited = nullptr;
    for (const Thread& thread : block_threads) {
      if (thread.state == State::finished) exited = &thread;
      if (thread.state != State::at_barrier || thread.barrier != id) continue;
      ++waiting;
      latest = std::max(latest, thread.block_time);
      if (!first) first = &thread;
      if (!same_place(thread.site, first->site) || thread.barrier_count != first->barrier_count) elsewhere = &thread;
    }
    if (!first) continue;
    if (elsewhere) {
      block_error("divergent barrier", *first, elsewhere);
      return false;
    }
    if (waiting < first->barrier_count) {
      if (exited) {
        block_error("a thread exited before a barrier that others wait at", *first, exited);
        return false;
      }
      continue;
    }
    released = true;
    for (Thread& thread : block_threads) {
      if (thread.state != State::at_barrier || thread.barrier != id) continue;
      thread.state = State::ready;
      thread.block_time = latest + 1;
    }
  }
  return released;
}

CUDA_ON_CPU_UNSANITIZED bool run_ready(const std::vector<unsigned>& order, size_t from, size_t to, size_t& left) {
  bool ran = false;
  for (size_t k = from; k < to && !launch_failed; ++k) {
    Thread& thread = block_threads[order[k]];
    if (thread.state != State::ready) continue;
    to_thread(thread);
    ran = true;
    if (thread.state == State::finished) --left;
  }
  return ran;
}

// Random order interleaves single threads. The others give the greatest skew: each warp runs alone to its next block
// barrier.
CUDA_ON_CPU_UNSANITIZED bool advance(std::vector<unsigned>& order, Shuffler& shuffler, size_t& left) {
  const size_t count = order.size();
  bool ran = false;
  if (launch_state.schedule.order == Order::random) {
    shuffler.shuffle(order);
    ran = run_ready(order, 0, count, left);
    for (unsigned warp = 0; warp * WARP_SIZE < count && !launch_failed; ++warp) ran = release_warp(warp) || ran;
    return ran;
  }
  for (size_t from = 0; from < count && !launch_failed;) {
    const unsigned warp = block_threads[order[from]].warp;
    size_t to = from;
    while (to < count && block_threads[order[to]].warp == warp) ++to;
    bool more = true;
    while (more && !launch_failed) {
      more = run_ready(order, from, to, left);
      if (!launch_failed) more = release_warp(warp) || more;
      ran = ran || more;
    }
    from = to;
  }
  return ran;
}

// Kept for later launches: those of the largest block so far. In an array, because the functions of a vector would be
// instrumented, and ThreadSanitizer does not know that one launch follows the other.
char* stacks[MOST_THREADS];
unsigned stack_count = 0;

CUDA_ON_CPU_UNSANITIZED void start_threads() {
  const Index3 size = launch_state.block;
  for (unsigned i = 0; i < block_threads.size(); ++i) {
    Thread& thread = block_threads[i];
    if (i == stack_count) stacks[stack_count++] = new_stack();
    char* stack = stacks[i];
#if defined(__SANITIZE_THREAD__)
    renew_stack(stack);
    thread.context.tsan = __tsan_create_fiber(0);  // fresh in each block: the blocks stay unordered against each other
#endif
    thread.stack = stack;
    thread.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    thread.linear = i;
    thread.lane = i % WARP_SIZE;
    thread.warp = i / WARP_SIZE;
    thread.state = State::ready;
    thread.site = {};
    thread.block_time = thread.warp_time = thread.operations = thread.readable = 0;
    thread.copies.clear();
    thread.copy_group = 0;
    prepare(thread.context, stack, thread_entry);
  }
}

#if defined(__SANITIZE_THREAD__)
// A destroyed fiber's number is used again, which would hide races between blocks: they are kept until there are too
// many, for each takes about a megabyte. In an array, because the functions of a vector would be instrumented.
constexpr size_t MOST_TSAN_FIBERS = 4000;
void* ended_fibers[MOST_TSAN_FIBERS];
size_t ended_count = 0;
CUDA_ON_CPU_UNSANITIZED void destroy_ended_fibers() {
  while (ended_count) __tsan_destroy_fiber(ended_fibers[--ended_count]);
}
#endif

CUDA_ON_CPU_UNSANITIZED void run_block(std::vector<unsigned>& order, Shuffler& shuffler) {
#if defined(__SANITIZE_THREAD__)
  scheduler.tsan = __tsan_get_current_fiber();
#endif
  // A heap block of exactly the bytes asked for, so that a sanitizer sees overruns.
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, std::max(1u, launch_state.shared_bytes))) abort();
  block_shared_memory = static_cast<char*>(memory);
  memset(block_shared_memory, POISON, launch_state.shared_bytes);
  if (launch_state.block_starts) launch_state.block_starts();
  start_threads();
  size_t left = block_threads.size();
  while (left && !launch_failed) {
    const bool ran = advance(order, shuffler, left);
    if (launch_failed || !left || ran) continue;
    if (release_barriers() || launch_failed) continue;
    for (const Thread& thread : block_threads) {
      if (thread.state == State::finished) continue;
      block_error("deadlock", thread);
      break;
    }
  }
  if (launch_state.block_ends && !launch_failed) launch_state.block_ends();
  order_after(tokens + END_TOKEN);
#if defined(__SANITIZE_THREAD__)
  if (ended_count + block_threads.size() > MOST_TSAN_FIBERS) destroy_ended_fibers();
  for (Thread& thread : block_threads) ended_fibers[ended_count++] = thread.context.tsan;
#endif
  free(block_shared_memory);
  block_shared_memory = nullptr;
}

#if defined(__SANITIZE_THREAD__)
// Each block gets an operating-system thread of its own, so that __shared__ variables can be thread_local:
// ThreadSanitizer then never confuses the shared memory of two blocks. To it, the wait must not order anything.
struct BlockThread {
  std::vector<unsigned>* order;
  Shuffler* shuffler;
  int done;
};
CUDA_ON_CPU_UNSANITIZED void* block_thread(void* argument) {
  auto* work = static_cast<BlockThread*>(argument);
  run_block(*work->order, *work->shuffler);
  __atomic_store_n(&work->done, 1, __ATOMIC_SEQ_CST);
  return nullptr;
}
#endif

}  // namespace

CUDA_ON_CPU_UNSANITIZED bool run(Launch launch) {
  launch_state = std::move(launch);
  launch_failed = false;
  launch_error.clear();
  const Index3 grid = launch_state.grid, block = launch_state.block;
  const size_t threads = size_t(block.x) * block.y * block.z, blocks = size_t(grid.x) * grid.y * grid.z;
  if (!threads || threads > MOST_THREADS || block.z > 64 || !blocks || grid.y > 65535 || grid.z > 65535 ||
      launch_state.shared_bytes > MOST_SHARED) {
    char text[256];
    snprintf(text, sizeof text, "invalid launch: grid (%u, %u, %u), block (%u, %u, %u), %u bytes of shared memory",
             grid.x, grid.y, grid.z, block.x, block.y, block.z, launch_state.shared_bytes);
    launch_error = text;
    return false;
  }
  block_threads.resize(threads);
  Shuffler shuffler{launch_state.schedule.seed + 1};
  std::vector<unsigned> order = in_order(threads, launch_state.schedule.order, shuffler);
  const std::vector<unsigned> block_order = in_order(blocks, launch_state.schedule.order, shuffler);
#if defined(__SANITIZE_THREAD__)
  std::vector<char> all_tokens(TOKENS * blocks);
  std::vector<pthread_t> operating_system_threads;
#endif
  for (const unsigned i : block_order) {
    launch_state.block_index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
#if defined(__SANITIZE_THREAD__)
    tokens = all_tokens.data() + TOKENS * i;
    BlockThread work{&order, &shuffler, 0};
    pthread_t thread;
    if (pthread_create(&thread, nullptr, block_thread, &work)) abort();
    while (!__atomic_load_n(&work.done, __ATOMIC_SEQ_CST)) usleep(50);
    operating_system_threads.push_back(thread);
#else
    run_block(order, shuffler);
#endif
    if (launch_failed) break;
  }
#if defined(__SANITIZE_THREAD__)
  for (pthread_t thread : operating_system_threads)
    pthread_join(thread, nullptr);  // the kernel has ended: the host may read
  destroy_ended_fibers();
#endif
  current_thread = nullptr;
  return !launch_failed;
}

const char* last_error() { return launch_error.c_str(); }

}  // namespace cuda_on_cpu
