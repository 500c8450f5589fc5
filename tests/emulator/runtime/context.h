// Stacks and the switch between them: what a CUDA thread is made of on the CPU (x86-64, System V ABI).
//
// Under a sanitizer every switch is announced. ThreadSanitizer is told that a switch orders nothing (flag 1), so that
// two CUDA threads are unordered unless a barrier orders them, although they really run one after the other.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64"
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#define CUDA_ON_CPU_UNSANITIZED __attribute__((no_sanitize("thread"), noinline))
#else
#define CUDA_ON_CPU_UNSANITIZED __attribute__((noinline))
#endif
#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old, size_t* size_old);
}
#endif

// Saves the callee-saved registers on the present stack, stores its pointer in *save, continues on the stack `to`.
extern "C" void cuda_on_cpu_switch(void** save, void* to);

namespace cuda_on_cpu {

constexpr size_t STACK_BYTES = 256 << 10;

struct Context {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;  // of the stack; for the scheduler it is learnt at the first switch away from it
  size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;        // ThreadSanitizer's fiber
};

// A stack whose lowest page may not be touched: an overflow is a fault, not silent damage.
inline char* new_stack() {
  void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED || mprotect(stack, 4096, PROT_NONE)) {
    perror("cuda_on_cpu: stack of a fiber");
    abort();
  }
  return static_cast<char*>(stack);
}

// Maps fresh pages over a used stack: ThreadSanitizer forgets who wrote there.
inline void renew_stack(char* stack) {
  mmap(stack + 4096, STACK_BYTES - 4096, PROT_READ | PROT_WRITE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

// Prepares a context that starts in `entry` on `stack`.
CUDA_ON_CPU_UNSANITIZED inline void prepare(Context& context, char* stack, void (*entry)()) {
  constexpr int CALLEE_SAVED = 6;
  void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
  *--top = nullptr;  // the return address of entry: it never returns
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < CALLEE_SAVED; ++i) *--top = nullptr;
  context = {top, stack, STACK_BYTES, nullptr, context.tsan};
}

// `leaving_for_good`: the present context is never resumed.
CUDA_ON_CPU_UNSANITIZED inline void switch_context(Context& from, Context& to, bool leaving_for_good = false) {
  (void)leaving_for_good;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(leaving_for_good ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, 1);
#endif
  cuda_on_cpu_switch(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first thing an `entry` does; learns the scheduler's stack.
CUDA_ON_CPU_UNSANITIZED inline void arrived_from(Context& scheduler) {
  (void)scheduler;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.bytes);
#endif
}

// Memory ordering as ThreadSanitizer sees it: what was done before order_before(p) happens before what follows
// order_after(p).
inline void order_before(void* address) {
  (void)address;
#if defined(__SANITIZE_THREAD__)
  __tsan_release(address);
#endif
}
inline void order_after(void* address) {
  (void)address;
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(address);
#endif
}

}  // namespace cuda_on_cpu
