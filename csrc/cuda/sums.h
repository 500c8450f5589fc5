// Sums in a fixed order, without atomic operations: every block writes a partial sum, and a second kernel adds the
// partial sums up in double precision.
#pragma once

#include "launch.h"

namespace invflow::cuda {

// The sum of `value` over the threads of a block, for thread 0. Every thread must call it.
template <int threads, class T>
INVFLOW_DEVICE T sum_of_block(T value) {
  __shared__ T sums[threads / 32];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
#pragma unroll
  for (int warp = 0; warp < threads / 32; ++warp) total += sums[warp];
  return total;
}

// totals[i] = sum_k partial[i * total_stride + k * term_stride] over `terms` terms, for i < count.
struct PartialSums {
  const void* partial;
  void* totals;
  int64_t count, terms, total_stride, term_stride;
};

// In one launch. T is the state's arithmetic type.
template <class T>
void add_partial_sums(const Site& site, const PartialSums& some, const PartialSums& others = {});

}  // namespace invflow::cuda
