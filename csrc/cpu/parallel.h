// Loops over independent items on torch's OpenMP threads, so that torch.set_num_threads governs them.
#pragma once

#include <cstdint>

#include "invflow/cpu_kernels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Elements below which starting threads costs more than it saves.
constexpr int64_t kParallelElements = 16384;

// No thread number reaches this.
inline int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls body(begin, end, thread) over [0, items), split evenly over the threads; `elements` says how much work that is.
// No exception may leave the code of a thread, and memory may run out there: then this throws, after all have ended.
template <class Body>
void parallel_for(int64_t items, [[maybe_unused]] int64_t elements, const Body& body) {
#ifdef _OPENMP
  if (elements >= kParallelElements && items > 1 && omp_get_max_threads() > 1 && !omp_in_parallel()) {
    int failed = 0;
#pragma omp parallel
    {
      const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
      const int64_t begin = items * thread / threads, end = items * (thread + 1) / threads;
      try {
        if (begin < end) body(begin, end, static_cast<int>(thread));
      } catch (...) {
#pragma omp atomic write
        failed = 1;
      }
    }
    if (failed) invflow::throw_out_of_memory();
    return;
  }
#endif
  if (items > 0) body(int64_t{0}, items, 0);
}

}  // namespace
