// Loops over independent items on torch's OpenMP threads, so that torch.set_num_threads governs them.
#pragma once

#include <cstdint>

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
template <class Body>
void parallel_for(int64_t items, [[maybe_unused]] int64_t elements, const Body& body) {
#ifdef _OPENMP
  if (elements >= kParallelElements && items > 1 && omp_get_max_threads() > 1 && !omp_in_parallel()) {
#pragma omp parallel
    {
      const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
      const int64_t begin = items * thread / threads, end = items * (thread + 1) / threads;
      if (begin < end) body(begin, end, static_cast<int>(thread));
    }
    return;
  }
#endif
  if (items > 0) body(int64_t{0}, items, 0);
}

}  // namespace
