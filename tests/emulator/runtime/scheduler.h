// What fibers.cpp, the side of the threads, and scheduler.cpp share.
#pragma once
#include <string>

#include "fibers.h"

namespace cuda_on_cpu {

extern Context scheduler;
extern std::string launch_error;
extern bool launch_failed;

// Addresses that stand for barriers towards ThreadSanitizer, fresh for each block: two for each block barrier (a thread
// may reach the next one while others leave the last), two for each thread in the barriers of its warp, one for the
// end.
constexpr size_t END_TOKEN = 2 * BARRIERS;
constexpr size_t WARP_TOKENS = END_TOKEN + 1;
constexpr size_t TOKENS = WARP_TOKENS + 2 * MOST_THREADS;
extern char* tokens;

// What a fiber runs: the kernel, then back to the scheduler for good.
void thread_entry();

}  // namespace cuda_on_cpu
