#include "fibers.h"

#include <algorithm>
#include <cstdarg>
#include <cstring>

#include "scheduler.h"

asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch,@function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch,.-cuda_on_cpu_switch
)");

namespace cuda_on_cpu {

Launch launch_state;
Thread* current_thread = nullptr;
std::vector<Thread> block_threads;
char* block_shared_memory = nullptr;
std::function<void(const AsyncCopy&)> copy_lands;

namespace {

CUDA_ON_CPU_UNSANITIZED void to_scheduler(bool for_good = false) {
  switch_context(current_thread->context, scheduler, for_good);
}

void land(Thread& thread, int last_group) {
  auto& copies = thread.copies;
  for (const AsyncCopy& copy : copies) {
    if (copy.group > last_group) continue;
    if (copy_lands) copy_lands(copy);
    memcpy(copy.to, copy.from, copy.from_bytes);
    memset(static_cast<char*>(copy.to) + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
  }
  copies.erase(std::remove_if(copies.begin(), copies.end(), [=](const AsyncCopy& c) { return c.group <= last_group; }),
               copies.end());
}

}  // namespace

CUDA_ON_CPU_UNSANITIZED void thread_entry() {
  arrived_from(scheduler);
  launch_state.kernel();
  land(*current_thread, current_thread->copy_group);
  current_thread->state = State::finished;
  order_before(tokens + END_TOKEN);
  to_scheduler(true);
  abort();  // a finished thread is never resumed
}

CUDA_ON_CPU_UNSANITIZED void fail(Site site, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  const Index3 b = launch_state.block_index;
  char place[256];
  snprintf(place, sizeof place, " at %s%sline %d in thread %u of block (%u, %u, %u)", site.file ? site.file : "",
           site.file ? " " : "", site.line, current_thread->linear, b.x, b.y, b.z);
  launch_error = std::string(text) + place;
  launch_failed = true;
  to_scheduler(true);  // the fibers of the block are abandoned where they stand
  abort();
}

CUDA_ON_CPU_UNSANITIZED void block_barrier(unsigned id, unsigned count, Site site) {
  Thread& thread = *current_thread;
  if (id >= BARRIERS) fail(site, "barrier %u: there are 16", id);
  if (count % WARP_SIZE || count > block_threads.size()) fail(site, "barrier for %u threads", count);
  thread.barrier = id;
  thread.barrier_count = count ? count : static_cast<unsigned>(block_threads.size());
  thread.site = site;
  thread.doing = "waits at the barrier at";
  thread.state = State::at_barrier;
  char* token = tokens + 2 * id + (thread.block_time & 1);
  order_before(token);
  to_scheduler();
  order_after(token);
}

CUDA_ON_CPU_UNSANITIZED void meet(unsigned mask, const uint32_t* words, unsigned count, const char* operation,
                                  Site site) {
  Thread& thread = *current_thread;
  if (!(mask >> thread.lane & 1)) fail(site, "%s: lane %u is not in its own mask 0x%08x", operation, thread.lane, mask);
  for (unsigned i = 0; i < count; ++i) thread.published[thread.operations & 1][i] = words[i];
  thread.mask = mask;
  thread.site = site;
  thread.doing = operation;
  thread.state = State::in_warp_operation;
  to_scheduler();
}

CUDA_ON_CPU_UNSANITIZED uint32_t published_by(unsigned lane, unsigned word) {
  const Thread& other = block_threads[current_thread->warp * WARP_SIZE + lane];
  return other.published[other.readable][word];
}

CUDA_ON_CPU_UNSANITIZED void warp_barrier(unsigned mask, Site site) {
  Thread& thread = *current_thread;
  order_before(tokens + WARP_TOKENS + 2 * thread.linear + (thread.operations & 1));
  meet(mask, &thread.warp_time, 1, "bar.warp.sync", site);
  unsigned latest = 0;
  for (unsigned lane = 0; lane < WARP_SIZE; ++lane) {
    if (!(mask >> lane & 1)) continue;
    latest = std::max(latest, published_by(lane));
    const Thread& other = block_threads[thread.warp * WARP_SIZE + lane];
    order_after(tokens + WARP_TOKENS + 2 * other.linear + other.readable);
  }
  thread.warp_time = latest + 1;
}

void start_copy(void* to, const void* from, unsigned bytes, unsigned from_bytes, Site site) {
  if (from_bytes > bytes) fail(site, "cp.async of %u bytes from %u", bytes, from_bytes);
  current_thread->copies.push_back({to, from, bytes, from_bytes, current_thread->copy_group, site});
}

void commit_copies() { ++current_thread->copy_group; }

void wait_for_copies(int groups_left_open) { land(*current_thread, current_thread->copy_group - groups_left_open - 1); }

}  // namespace cuda_on_cpu
